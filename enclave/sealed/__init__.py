"""The sealed file in parts: refusals, container, payload, writer; what a publisher's machine needs to collect a model.

A worker imports `refusals`, `container` and `payload` (through enclave/sealing.py). Everything else here runs only
where models are sealed: `writer`, `publisher_key`, `collect` with the readers of the model formats, `golden`.
"""
