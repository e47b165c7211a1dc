"""Every rule of a policy of one's own, with the check that refuses what it does not want.

A form is proposed from good evidence, which it accepts; then one value of it after the other is made to want something
else. A rule that says "any" is made to want something, where it can.
"""

import copy
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import ValidationError

from hermetic.attestation import stored
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.policy import AppraisalPolicy
from hermetic.attestation.policy.explain import judge_stored
from hermetic.attestation.policy.propose import propose
from tests.attestation.stored.cases import Case
from tests.attestation.stored.manipulations import GPU, GPUS, SGX, SNP, TDX, TPM
from tests.attestation.stored.rows import read, trust
from tests.attestation.stored.vtpms import AZ_SNP, AZ_TDX

VLEK: Final = Case(read("snp/milan_v3_vlek.report.bin"), (read("snp/milan_v3_vlek.vlek.der"),), at="2025-06-01")
GOOD: Final[Mapping[str, tuple[Case, ...]]] = {
    "snp": (SNP, VLEK), "tdx": (TDX,), "sgx": (SGX,), "nvgpu": (GPUS, GPU), "tpm": (TPM,), "az-snp-vtpm": (AZ_SNP,),
    "az-tdx-vtpm": (AZ_TDX,),
}  # fmt: skip
ABOUT_THE_FORM: Final = frozenset({"format", "name", "models", "profile"})
_HEX: Final = re.compile(r"[0-9a-f]{16,}")


def refusing() -> tuple[Mapping[str, Mapping[str, tuple[str, ...]]], tuple[str, ...]]:
    """Rule -> kind of evidence -> the checks that fail once the rule wants something else; and rules without any."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    silent: dict[str, None] = {}
    for kind, cases in GOOD.items():
        for case in cases:
            for rule, checks in _rules(case):
                if checks:
                    found.setdefault(rule, {}).setdefault(kind, checks)
                else:
                    silent[rule] = None
    return found, tuple(rule for rule in silent if rule not in found)


def _rules(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    claims, time = _claims(case)
    form = tomllib.loads(propose([claims], "page", ["*"], time))
    for path, value in _leaves(form):
        if path[0] in ABOUT_THE_FORM:
            continue
        tried = (_failed(claims, _changed(form, path, other), time) for other in _others(value))
        yield _general(".".join(path)), tuple(map(_general, next((one for one in tried if one), ())))


_GENERAL: Final = (
    (re.compile(r"(?<=pcrs\.)\d+$"), "<n>"),
    (re.compile(r"(?<=rtmr)\d+$"), "<n>"),
    (re.compile(r"(?<=tcb\.)Milan\.\w+\.\w+$"), "<generation>.<moment>.<part>"),
    (re.compile(r"(?<=tcb\.)(reported|current|committed|launch)\.\w+$"), "<moment>.<part>"),
    (re.compile(r"(?<=guest_policy\.)\w+$"), "<flag>"),
    (re.compile(r"(?<=snp\.platform\.)\w+$"), "<flag>"),
    (re.compile(r"(?<=archs\.)HOPPER"), "<arch>"),
)


def _general(name: str) -> str:
    """The name of a rule or check, with what many have in common in place of which one it is."""
    for pattern, text in _GENERAL:
        name = pattern.sub(text, name)
    return name


def _claims(case: Case) -> tuple[Claims, datetime]:
    time = datetime.fromisoformat(case.at).replace(tzinfo=UTC)
    found = stored.recognise(case.evidence, case.beside)
    claims = stored.judge(Checks(), found, case.trust or trust(), time, case.report_data)
    if claims is None:
        raise ValueError(f"expected good evidence, got a refusal of {found.kind}")
    return claims, time


def _leaves(table: Mapping[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*at, name))
        else:
            yield (*at, name), value


def _others(value: Any) -> Iterator[Any]:
    """What a rule could want instead of `value`; the form's loader says which of it is possible."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, list):
        yield from ([other] for one in value[:1] for other in _others(one) if not isinstance(other, list))
        yield from ([], ["VCEK"], ["VLEK"], ["OTHER"], ["hold"], ["single"], ["SWHardeningNeeded"])
    elif _HEX.fullmatch(value):
        yield value[:-1] + ("0" if value[-1] != "0" else "1")
    else:
        yield from ("required", "forbidden", "enforced", "none", 99, ["0" * 63 + "1"], ["0" * 95 + "1"], [1], [3])
        yield from (["VLEK"], ["VCEK"], "255.255", "9999.9", "FF.FF.FF.FF.FF", "f" * 16)


def _changed(form: Mapping[str, Any], path: tuple[str, ...], value: Any) -> Mapping[str, Any]:
    changed = copy.deepcopy(dict(form))
    table = changed
    for name in path[:-1]:
        table = table[name]
    table[path[-1]] = value
    return changed


def _failed(claims: Claims, form: Mapping[str, Any], time: datetime) -> tuple[str, ...]:
    checks = Checks()
    try:
        judge_stored(checks, claims, AppraisalPolicy.model_validate(form), time)
    except ValidationError:
        return ()
    return tuple(check.name for check in checks.failed)
