"""The v2 inference protocol: `grpc_service_pb2` and `model_config_pb2`, generated."""
