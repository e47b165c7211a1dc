"""The built-in form of `hermetic verify` for stored evidence: genuine, not debugged, TCB UpToDate where that is known.

What it does not ask is recorded as not evaluated. It is never good enough to release a key or to trust a server: no
file can carry its name, and `appraise`, which brokers and clients call, refuses it.
"""

from typing import ClassVar, Final, TypeVar

from hermetic.attestation.policy.dcap import SgxForm, TcbForm, TdxForm
from hermetic.attestation.policy.form import BUILT_IN, FORMAT, KINDS, AppraisalPolicy
from hermetic.attestation.policy.hermetic import HermeticForm
from hermetic.attestation.policy.nvgpu import NvGpuForm
from hermetic.attestation.policy.snp import GuestPolicyForm, PlatformForm, SnpForm
from hermetic.attestation.policy.tpm import TpmForm
from hermetic.attestation.policy.values import Form

_Form = TypeVar("_Form", bound=Form)


class _BuiltIn(AppraisalPolicy):
    """Judges whatever kinds there are, and demands none."""

    is_built_in: ClassVar[bool] = True


def _loose(form: type[_Form], **demands: object) -> _Form:
    """A table that says "any" wherever `demands` says nothing."""
    return form.model_validate(dict.fromkeys(form.model_fields, "any") | demands)


_TCB: Final = _loose(TcbForm, collateral="if-given", statuses=("UpToDate",))

GENUINE: Final[AppraisalPolicy] = _BuiltIn(
    format=FORMAT,
    name=BUILT_IN,
    models=("*",),
    profile="production",
    kinds=tuple(kind for kind in KINDS if kind != "sample"),
    allow_unmeasured_code=True,
    client_certificate="any",
    allow_any_machine=True,
    hermetic=_loose(HermeticForm, required=False, key_wrap=None),
    tpm=_loose(TpmForm, provisioned_ak=True, pcrs={}),
    snp=_loose(
        SnpForm, measurement_covers_code=False, guest_policy=_loose(GuestPolicyForm), platform=_loose(PlatformForm)
    ),
    tdx=_loose(TdxForm, tcb=_TCB),
    sgx=_loose(SgxForm, tcb=_TCB, measurement_covers_code=False),
    nvgpu=_loose(NvGpuForm),
)
