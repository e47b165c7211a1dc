"""Generated from protos/hermetic (`make protos`)."""
