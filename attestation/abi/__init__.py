"""Bytes <-> typed structures, one module per kind; no decision about trust, no signature checks, no I/O."""
