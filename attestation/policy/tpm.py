"""What a TPM's quote must say: the table [tpm] of a form, and its rules.

A vTPM whose key the processor's report binds (`hardware-report`) is worth what that report is: it is accepted beside a
CPU that the same form demands, has no EK, and carries no event log of ours. Not here: whether code is measured
(measured.py).
"""

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, StrictBool, StringConstraints

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import HermeticClaims, TpmClaims
from hermetic.attestation.policy import rules
from hermetic.attestation.policy.values import Any, Digests, Form, Required

ZEROS: Final = "0" * 64

PcrIndex: TypeAlias = Annotated[str, StringConstraints(pattern=r"^(1?[0-9]|2[0-3])$")]


class TpmForm(Form):
    """What a TPM's quote must say."""

    ek: Digests | Any
    provisioned_ak: StrictBool  # accept an AK whose key an operator entered by hand: no EK, no enrolled boot
    pcrs: Annotated[dict[PcrIndex, Digests | Any], Field(max_length=24)]
    root_hashes: Digests | Any
    secure_boot: Required
    log_base: Digests | Literal["zeros", "any"]


def judge_tpm(
    checks: Checks,
    claims: TpmClaims,
    form: TpmForm,
    hermetic: HermeticClaims | None,
    *,
    beside_cpu: bool,
    software: bool,
) -> None:
    """Record in `checks` what `form` says to the genuine `claims`: one check for each rule.

    `beside_cpu`: the form demands a CPU's evidence too. `software`: its profile takes software TPMs.
    """
    checks.require("tpm.software", software or not claims.software, "a hardware TPM", "a software TPM")
    _judge_key(checks, claims, form, beside_cpu=beside_cpu)
    rules.one_of(checks, "tpm.ek", form.ek, claims.ek)
    for index, wanted in form.pcrs.items():
        rules.one_of(checks, f"tpm.pcrs.{index}", wanted, claims.pcrs.get(index))
    rules.flag(checks, "tpm.secure_boot", form.secure_boot, claims.secure_boot)
    _judge_log(checks, claims, hermetic, form)


def _judge_key(checks: Checks, claims: TpmClaims, form: TpmForm, *, beside_cpu: bool) -> None:
    if form.provisioned_ak:
        checks.skip("tpm.enrolled", rules.ACCEPTED)
        return
    accepted = ("certificate", "hardware-report") if beside_cpu else ("certificate",)
    checks.demand("tpm.enrolled", claims.enrolled in accepted, accepted, claims.enrolled)


def _judge_log(checks: Checks, claims: TpmClaims, hermetic: HermeticClaims | None, form: TpmForm) -> None:
    if form.log_base == "any":
        checks.skip("tpm.log_base", rules.ACCEPTED)
    elif claims.log_base is None:
        checks.skip("tpm.log_base", "no log of ours came along")
    else:
        rules.one_of(checks, "tpm.log_base", (ZEROS,) if form.log_base == "zeros" else form.log_base, claims.log_base)
    if hermetic is None or hermetic.purpose != "model":
        checks.skip("tpm.manifests", "no model's key is asked for")
    elif claims.enrolled == "hardware-report" and claims.log_pcr is None:
        checks.skip("tpm.manifests", "this kind carries no log: the report data covers the manifest's digest")
    else:
        # Never a choice: the manifest is measured before its key is asked for.
        measured = hermetic.manifest_digest in claims.manifests
        checks.demand("tpm.manifests", measured, hermetic.manifest_digest, claims.manifests)
