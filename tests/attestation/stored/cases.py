"""Names of what is done to good evidence, the case that it makes, and what can be done to evidence of every kind."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from hermetic.attestation import stored
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.stored import Verdict
from tests.attestation.stored.rows import trust

P256: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
P384: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
BEFORE, AFTER = "2016-01-01", "9999-12-31"

FLIPPED = "a bit of what is signed, flipped"
SIGNATURE = "a bit of the signature, flipped"
R_ZERO, S_ZERO = "signature number r is 0", "signature number s is 0"
R_BIG, S_BIG = "r is the order of the curve (RSA: above the modulus)", "s is the order of the curve"
OTHER = "another chip's key vouches for it (swapped leaf)"
FORGED = "a forged endorsement"
ROOT = "roots of somebody else"
NOBODY = "nobody vouches for it"
EARLY, LATE = "before the certificates were issued", "after they have ended"
CHALLENGE = "another challenge"
SHORT, LONG = "the challenge, one byte less", "the challenge, one byte more"
CUT, MORE = "the last byte is missing", "one byte more at the end"
VERSION = "a version that there is not"
DEBUG = "debug is on"
TCB = "the platform's TCB is out of date"
LEVEL = "the platform reaches no listed level"
COLLATERAL_TIME = "collateral whose time has passed"
COLLATERAL_FORGED = "a bit of the collateral, flipped"
COLLATERAL_OTHER = "collateral of another platform"
COLLATERAL_PART = "collateral without its most important part"
COLLATERAL_KIND = "collateral of another vendor"
REVOKED = "it, or its issuer, was revoked"
PCRS = "two PCRs have changed places"
BINDING = "another key than the one that the hardware binds"
LOG = "an event log of another boot"
MANIFEST_OTHER = "a manifest with another measurement"
MANIFEST_EDITED = "a manifest that was edited"
MANIFEST_ROOT = "a manifest of another root"
MIXED = "the reports of two devices, exchanged"
TWICE = "one device twice, for one challenge"
CC_OFF, DEVTOOLS = "confidential computing is off", "DEVTOOLS is on"
MISSING = "one GPU fewer than the guest's driver sees"
NOTHING = "bytes that are no evidence"

NAMES: Final = (
    FLIPPED, SIGNATURE, R_ZERO, S_ZERO, R_BIG, S_BIG, OTHER, FORGED, ROOT, NOBODY, EARLY, LATE, CHALLENGE, SHORT, LONG,
    CUT, MORE, VERSION, DEBUG, TCB, LEVEL, COLLATERAL_TIME, COLLATERAL_FORGED, COLLATERAL_OTHER, COLLATERAL_PART,
    COLLATERAL_KIND, REVOKED, PCRS, BINDING, LOG, MANIFEST_OTHER, MANIFEST_EDITED, MANIFEST_ROOT, MIXED, TWICE, CC_OFF,
    DEVTOOLS, MISSING, NOTHING,
)  # fmt: skip
"""In the order of the page."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Evidence, what lies beside it, when it is judged, what it must be bound to, and by whose roots."""

    evidence: bytes
    beside: tuple[bytes, ...] = ()
    at: str = "2025-07-20"
    report_data: bytes | None = None
    trust: TrustRoots | None = None

    def verdict(self) -> Verdict:
        """What is said of it."""
        found = stored.recognise(self.evidence, self.beside)
        time = datetime.fromisoformat(self.at).replace(tzinfo=UTC)
        return stored.verdict(found, self.trust or trust(), time, report_data=self.report_data)

    def but(self, **changes: Any) -> "Case":
        """The case with one thing changed."""
        return dataclasses.replace(self, **changes)


Cases = Mapping[str, Case]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def placed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def of_all(good: Case, challenge: bytes, other_roots: str) -> dict[str, Case]:
    """What can be done to evidence of every kind."""
    return {
        ROOT: good.but(trust=trust((other_roots,))),
        EARLY: good.but(at=BEFORE),
        LATE: good.but(at=AFTER),
        CHALLENGE: good.but(report_data=flipped(challenge, 0)),
        SHORT: good.but(report_data=challenge.rstrip(b"\0")[:-1]),  # a CPU's field is filled with 00
        LONG: good.but(report_data=challenge + b"\0"),
    }


def of_file(good: Case) -> dict[str, Case]:
    return {CUT: good.but(evidence=good.evidence[:-1]), MORE: good.but(evidence=good.evidence + b"\x5a")}


def edited(good: Case, change: Callable[[dict[str, Any]], None]) -> Case:
    """The case with its JSON changed."""
    members = json.loads(good.evidence)
    change(members)
    return good.but(evidence=json.dumps(members).encode())


def exchange_pcrs(members: dict[str, Any]) -> None:
    """Let two PCRs of a quote in JSON change places."""
    pcrs = members["tpm_quote"]["pcrs"]
    other = next(index for index, value in enumerate(pcrs) if value != pcrs[0])
    pcrs[0], pcrs[other] = pcrs[other], pcrs[0]
