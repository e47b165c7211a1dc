"""Where one signature is enough: sign in the step that asks for it. For demos and small installations."""

from collections.abc import Mapping
from datetime import UTC, datetime

from hermetic.attestation.admin_client import AdminClient
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.governance.change import Change
from hermetic.attestation.governance.operator_key import Secret, open_signer
from hermetic.attestation.governance.proposing import Proposer, restoring
from hermetic.errors import ConfigurationError

__all__ = ["demand_one_signature", "sign_key", "sign_restore"]


def demand_one_signature(client: AdminClient) -> None:
    """Raise `ConfigurationError` where one operator's signature is not enough."""
    threshold = Proposer.of_json(client.governance()).operators.threshold
    if threshold != 1:
        raise ConfigurationError(
            f"--sign-as: expected a broker where one signature is enough, got one that needs {threshold}: "
            "upload without it, then propose, sign and submit"
        )


def sign_key(client: AdminClient, key_id: str, signer: str, secret: Secret | None = None) -> None:
    """Sign for a pending key and hand that in; `key_id` is kbs:///repository/type/tag, `signer` NAME=KEY.

    KEY is a file, or `pkcs11:` and a token's; `secret` is asked for its passphrase or PIN, where it has one.
    """
    change = Proposer.of_json(client.governance()).key(
        key_id.removeprefix("kbs:///"), "signed at its upload", datetime.now(UTC)
    )
    _hand_in(client, change, signer, secret)


def sign_restore(
    client: AdminClient, target: Mapping[str, JsonValue], reason: str, signer: str, secret: Secret | None = None
) -> None:
    """Sign for taking back the revocation of `{"model", "version"?}`, `{"server"}` or `{"chip"}`, and hand that in."""
    subject, content = restoring(client.leases(), target)
    change = Proposer.of_json(client.governance()).change(subject, content, reason, datetime.now(UTC))
    _hand_in(client, change, signer, secret)


def _hand_in(client: AdminClient, change: Change, signer: str, secret: Secret | None = None) -> None:
    name, _, where = signer.partition("=")
    if not name or not where:
        raise ConfigurationError(f"--sign-as: expected NAME=KEYFILE or NAME=pkcs11:..., got {signer!r}")
    with open_signer(where, secret) as key:
        signed = key.sign(change, name)
    client.hand_in(signed.dumps())
