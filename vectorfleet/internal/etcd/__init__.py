"""Generated from protos/vectorfleet/internal/etcd: do not edit."""
