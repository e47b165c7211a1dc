"""Ask for evidence over a channel, and judge what comes: the one RPC that goes to a server that is not verified yet."""

import json
import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Final

import grpc

from hermetic.attestation.server_evidence import NONCE_SIZE
from hermetic.client.handshake import NOW, Endpoint, Leaf, Tls
from hermetic.client.judgement import REPLY_LIMIT, Proof, verify_reply
from hermetic.client.policy import CallerPolicy
from hermetic.errors import FailedCheck, NotReadyError, UnauthenticatedError, VerificationError
from hermetic.protos.hermetic.v1 import attestation_pb2 as pb

__all__ = ["METHOD", "ask", "pinned_arguments", "pinned_channel"]

METHOD: Final = "/hermetic.v1.Attestation/GetEvidence"
MESSAGE_LIMIT: Final = (1 << 31) - 1  # bytes, as Triton's own clients have it

_SERVICE, _, _NAME = METHOD.removeprefix("/").partition("/")
_SERVICE_CONFIG: Final = json.dumps(
    {"methodConfig": [{"name": [{"service": _SERVICE, "method": _NAME}], "maxResponseMessageBytes": REPLY_LIMIT}]}
)
"""gRPC refuses a longer answer to the one question that is asked before anything is proved, and does not read it."""

_REFUSED: Final = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})


Arguments = tuple[str, grpc.ChannelCredentials, list[tuple[str, str | int]]]
"""Of `grpc.secure_channel`, and of its twin for asyncio."""


def pinned_channel(endpoint: Endpoint, leaf: Leaf, tls: Tls) -> grpc.Channel:
    """Return a channel that speaks to the holder of the leaf's key, and to nobody else: it is the only trust anchor."""
    target, credentials, options = pinned_arguments(endpoint, leaf, tls)
    return grpc.secure_channel(target, credentials, options=options)


def pinned_arguments(endpoint: Endpoint, leaf: Leaf, tls: Tls) -> Arguments:
    """Return what such a channel is made of: target, credentials, options. Raises `ConfigurationError`."""
    key, chain = tls.own()
    credentials = grpc.ssl_channel_credentials(leaf.pem, key, chain)
    options: list[tuple[str, str | int]] = [
        ("grpc.max_send_message_length", MESSAGE_LIMIT),
        ("grpc.max_receive_message_length", MESSAGE_LIMIT),
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.service_config_disable_resolution", 1),  # no name server changes it
        # Whoever showed the leaf is spoken to, and nobody on the way there: not what the environment calls a proxy,
        ("grpc.enable_http_proxy", 0),
        ("grpc.address_http_proxy_enabled_addresses", ""),
        # nor what the name means by now.
        ("grpc.ssl_target_name_override", leaf.name),
        ("grpc.use_local_subchannel_pool", 1),  # a connection of our own: it ends when the channel is closed
    ]
    return leaf.address or f"dns:///{endpoint}", credentials, options


def ask(
    channel: grpc.Channel,
    leaf: Leaf,
    policy: CallerPolicy,
    timeout_s: float,
    clock: Callable[[], datetime] = NOW,
) -> Proof:
    """Have whoever holds the leaf's key prove what it is, for a nonce made now.

    Raises `NotReadyError` where there is no answer, `UnauthenticatedError` where the server does not let us in,
    `VerificationError` or `AppraisalError` where the answer does not convince.
    """
    nonce = secrets.token_bytes(NONCE_SIZE)
    get_evidence = channel.unary_unary(
        METHOD, pb.GetEvidenceRequest.SerializeToString, pb.GetEvidenceResponse.FromString
    )
    try:
        reply = get_evidence(pb.GetEvidenceRequest(nonce=nonce), timeout=timeout_s)
    except grpc.RpcError as error:
        raise _error(error) from None
    return verify_reply(reply, nonce, leaf.spki, leaf.name, policy, clock())


def _error(error: grpc.RpcError) -> Exception:
    code, details = error.code(), error.details()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return VerificationError([FailedCheck("evidence", "a server that proves what it is", str(details))])
    if code in _REFUSED:
        return UnauthenticatedError(f"server: expected to be let in, got {code.name}: {details}")
    return NotReadyError(f"server: expected evidence, got {code.name}: {details}")
