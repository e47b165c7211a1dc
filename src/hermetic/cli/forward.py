"""`hermetic forward`: a local door to a verified server, for clients in any language."""

from typing import TYPE_CHECKING, Annotated

import typer

from hermetic.cli import callers, output
from hermetic.errors import ConfigurationError

if TYPE_CHECKING:
    from hermetic.client import Proof

DEFAULT_DOOR = "127.0.0.1:8001"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="forward")(forward)


def forward(
    server: callers.ServerArgument,
    *,
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Loopback address and port, or unix:PATH.")
    ] = DEFAULT_DOOR,
    ca: callers.CaOption = None,
    cert: callers.CertificateOption = None,
    key: callers.KeyOption = None,
    policy: callers.PolicyOption = None,
    name: callers.NameOption = None,
    user: Annotated[
        list[str] | None,
        typer.Option(help="Name or number of a user of this machine who may come in too, beside our own. Repeatable."),
    ] = None,
    unsafe_any_user: Annotated[
        bool, typer.Option("--unsafe-any-user", help="Let every user of this machine come in.")
    ] = False,
    reverify_s: Annotated[
        float, typer.Option("--reverify", min=0.1, help="Seconds between two proofs of an open connection.")
    ] = 300,
    timeout_s: callers.TimeoutOption = 20,
) -> None:
    """Verify a server for each new connection to a local door, then pass bytes on; until interrupted.

    Whoever comes in is served as the caller whose certificate is given here: processes of our own user, of those that
    --user names, and nobody else. Exit 4: the server's evidence is not genuine, 5: the policy does not accept it;
    connections that are refused later are said on stderr.
    """
    import asyncio
    import contextlib
    import signal

    from hermetic.client.forward import Door, Forwarder
    from hermetic.client.handshake import Endpoint

    door = Door.parse(listen)
    tls, demanded = callers.tls_of(ca, cert, key, name), callers.policy_of(policy)
    users = None if unsafe_any_user else frozenset(map(_number_of, user or ()))
    if users is None:
        output.warn("every user of this machine may come in, and is served as the caller whose certificate this is")
    forwarder = Forwarder(
        Endpoint.parse(server), tls, demanded, reverify_s=reverify_s, timeout_s=timeout_s, users=users
    )
    forwarder.on_proof = _tell
    forwarder.on_refused = lambda error: output.complain(error, as_json=False)

    async def until_told() -> None:
        loop, task = (
            asyncio.get_running_loop(),
            asyncio.ensure_future(forwarder.run(door, lambda where: output.note(f"forwarding {where} to {server}"))),
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(until_told())


def _number_of(user: str) -> int:
    import pwd

    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigurationError(f"--user: expected a user of this machine, got {user!r}") from None


def _tell(proof: "Proof") -> None:
    warnings = f" (accepted knowingly: {', '.join(proof.warnings)})" if proof.warnings else ""
    output.note(f"verified: key sha256:{proof.statement.spki_sha256[:16]}...{warnings}")
