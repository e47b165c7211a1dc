"""Hermetic, a confidential inference server. The rooms: client, server, enclave, attestation, bench."""
