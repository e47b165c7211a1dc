"""Generated protobuf modules; `make protos` writes them from protos/."""
