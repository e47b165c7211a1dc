"""What a caller imports: a server's proof first, then a working client over the very channel that was proved.

    from hermetic.client import CallerPolicy, Tls, connect

    tls = Tls(Path("serving-ca.pem"), Path("client.pem"), Path("client.key"))
    with connect("inference.example:8001", tls, CallerPolicy.load(Path("caller.toml"))) as client:
        client.infer("model", inputs)      # a tritonclient.grpc.InferenceServerClient

`hermetic.client.aio` is the same for asyncio.

Reading order: connection.py (`connect`), guard.py (verified now, and again), handshake.py (who), evidence.py and
judgement.py (what), policy.py (what is demanded), forward.py (the same for clients in other languages).
"""

from hermetic.client.connection import connect, verify
from hermetic.client.handshake import Tls
from hermetic.client.judgement import Proof
from hermetic.client.policy import CallerPolicy

__all__ = ["CallerPolicy", "Proof", "Tls", "connect", "verify"]
