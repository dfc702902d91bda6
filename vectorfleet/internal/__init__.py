"""Generated from protos/vectorfleet/internal: do not edit."""
