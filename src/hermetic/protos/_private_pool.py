"""The descriptor pool of our generated messages, apart from protobuf's default one (see protos/generate.py)."""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
