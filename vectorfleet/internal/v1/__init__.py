"""Generated from protos/vectorfleet/internal/v1: do not edit."""
