"""What a demo does without on this host, decided from what the host offers, and said aloud.

A demo must also run in a plain container: it waives by name the isolation properties that the host cannot give, and it
takes the `sample` attester where no software TPM is installed. Outside a demo nothing is ever waived by itself.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.broker.initial import fix_operators
from hermetic.attestation.governance import Operator, OperatorKey, OperatorSet
from hermetic.provision.host import lacking_properties, software_tpm, zeroing_here
from hermetic.provision.plan import Plan

__all__ = ["DEMO_OPERATOR", "DEMO_OPERATOR_KEY", "DEMO_PUBLISHERS", "demo_plan", "govern"]

DEMO_PUBLISHERS: Final = ("demo", "third-party")
"""The first may publish programs (TorchScript, torch.export), the second may not."""

DEMO_OPERATOR: Final = "demo"
"""The one who signs for keys and policies of a demo."""

DEMO_OPERATOR_KEY: Final = "signer.key"
"""That one's key file, in `authority/operator`."""


def govern(folder: Path) -> str:
    """Name one operator in the log of the demo's broker, who signs alone; returns NAME=KEYFILE for `--sign-as`.

    Raises `ConfigurationError`.
    """
    key, path = OperatorKey.generate(), folder / "authority" / "operator" / DEMO_OPERATOR_KEY
    key.save(path)
    one = Operator(key=key.public, name=DEMO_OPERATOR, prefixes=("",))
    fix_operators(BrokerConfig.load(folder / "broker" / "broker.toml"), OperatorSet.of([one], 1))
    return f"{DEMO_OPERATOR}={path}"


def demo_plan(plan: Plan, *, tee: Literal["tpm", "snp", "tdx", "sample"] | None) -> tuple[Plan, Sequence[str]]:
    """The plan as this host can run it, and a sentence for each thing that is weaker than it should be."""
    weaker = []
    if tee is None and not software_tpm():
        tee = "sample"
        weaker.append("No software TPM (Debian: swtpm, swtpm-tools): evidence is `sample`, which proves nothing.")
    lacking = lacking_properties()
    weaker += [f"This host cannot give the isolation property {name}: waived in server.toml." for name in lacking]
    zeroing = zeroing_here().state
    if zeroing != "enforced":
        weaker.append("Freed memory is not overwritten on this host: the policy accepts that.")
    changed: dict[str, Any] = {
        "tee": tee or "tpm",
        "waived": tuple(lacking),
        "zeroing": "enforced" if zeroing == "enforced" else "any",
    }
    return dataclasses.replace(plan, **changed), weaker
