"""Generated from protos/vectorfleet/v1: do not edit."""
