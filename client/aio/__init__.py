"""The same for asyncio: a server's proof first, then `tritonclient.grpc.aio`'s client over the channel that was proved.

    from hermetic.client import CallerPolicy, Tls, aio

    async with await aio.connect("inference.example:8001", tls, policy) as client:
        await client.infer("model", inputs)

What is verified, when, and what follows is decided by the same code as for `hermetic.client.connect` (verified.py,
guard.py), in threads; here is what a channel of asyncio needs beside it. Reading order: connection.py, bridge.py
(such a channel as those threads see it), channel.py (as stubs see it), triton.py.
"""

from hermetic.client.aio.connection import connect

__all__ = ["connect"]
