"""A TPM's quote for whose key nobody vouches, and nobody is named who could: judged by what it holds, and no more.

Only for a verdict under the built-in form: there is no chain to judge, so that check is not evaluated. Anybody can make
such a key. Forms that somebody wrote, brokers, servers and clients never come here: for them the same check fails.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.verifiers import tpm
from hermetic.attestation.verifiers.tpm_evidence import TpmEvidence
from hermetic.errors import InvalidRequestError

CHECK: Final = "tpm.ak.certificate"
WHY: Final = "no certificate came along and no key or CA was named: anybody can make such a key"
_VOUCHING: Final = frozenset({"ak_public_area", "ak_certificate"})


def is_unvouched(evidence: JsonValue, trust: TrustRoots) -> bool:
    """Whether no certificate came with the evidence of a TPM, and `trust` names no key and no authority."""
    members = evidence if isinstance(evidence, Mapping) else {}
    additions = members.get("hermetic")
    is_bare = not isinstance(additions, Mapping) or _VOUCHING.isdisjoint(additions)
    return "tpm_quote" in members and is_bare and not (trust.tpm.ak_cas or trust.tpm.provisioned_aks)


def judge(checks: Checks, evidence: JsonValue, report_data: bytes | None, trust: TrustRoots, time: datetime) -> Claims:
    """As the verifier of TPMs, but for the key itself; raises `VerificationError`."""
    own = Checks()
    try:
        claims = tpm.judge(own, evidence, report_data, _with_its_own_key(evidence, trust), time)
    finally:
        for check in own.all:
            if check.name == CHECK:
                checks.skip(CHECK, WHY)
            else:
                checks.record(check)
    return _said_so(claims)


def _with_its_own_key(evidence: JsonValue, trust: TrustRoots) -> TrustRoots:
    try:
        key = TpmEvidence.parse(evidence).ak_spki
    except InvalidRequestError:
        return trust  # the verifier says what is wrong
    named = frozenset({hashlib.sha256(key).digest()})
    return dataclasses.replace(trust, tpm=dataclasses.replace(trust.tpm, provisioned_aks=named))


def _said_so(claims: Claims) -> Claims:
    quoted = claims.tpm
    if quoted is None:
        return claims
    checks = tuple(name for name in quoted.checks if name != CHECK)
    return Claims(kinds=(quoted.model_copy(update={"enrolled": "nobody", "checks": checks}),))
