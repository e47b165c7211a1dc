"""Generated from protos/hermetic/v1 (`make protos`)."""
