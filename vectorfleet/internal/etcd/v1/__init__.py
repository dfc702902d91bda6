"""Generated from protos/vectorfleet/internal/etcd/v1: do not edit."""
