"""Are a genuine TDX domain, or SGX enclave, and the platform below it acceptable? Forms, and their appraisal.

As everywhere in policies, a form leaves nothing out: "anything goes" is written as "any", and shows as not evaluated.
Debug is never acceptable and has no field. Whether the evidence is genuine was asked before, by verifiers/.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from hermetic.attestation.abi.dcap_collateral import Status
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Name, PlatformClaims, SgxClaims, Sha256Hex, Sha384Hex, TdxClaims

MAX_LIST: Final = 1024  # entries of one list

Any: TypeAlias = Literal["any"]
_Machine: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Machines: TypeAlias = Annotated[tuple[_Machine, ...], Field(min_length=1, max_length=MAX_LIST)]
Digests: TypeAlias = Annotated[tuple[Sha384Hex, ...], Field(min_length=1, max_length=MAX_LIST)]
EnclaveDigests: TypeAlias = Annotated[tuple[Sha256Hex, ...], Field(min_length=1, max_length=MAX_LIST)]
Count: TypeAlias = Annotated[int, Field(ge=0, strict=True)]


class _Form(BaseModel):
    """Every field must be written; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TcbForm(_Form):
    """How the platform must stand, by Intel's collateral."""

    collateral: Literal["required", "if-given"]
    statuses: Annotated[tuple[Status, ...], Field(min_length=1)]
    advisories: Annotated[tuple[Name, ...], Field(max_length=MAX_LIST)] | Any = Field(
        description="the only advisories that may stand against the platform"
    )
    evaluation_number: Count | Any = Field(description="the least number of Intel's evaluation that is taken")


class TdxForm(_Form):
    """What a TDX quote must say."""

    tcb: TcbForm
    machines: Machines | Any = Field(description="PPIDs or platform instance ids")
    mr_seam: Digests | Any
    mr_td: Digests | Any
    rtmr0: Digests | Any
    rtmr1: Digests | Any
    rtmr2: Digests | Any
    rtmr3: Digests | Any
    mr_config_id: Digests | Any
    mr_owner: Digests | Any
    mr_owner_config: Digests | Any
    service_td: Digests | Literal["none", "any"]
    sept_ve_disable: Literal["required", "any"]
    attributes: Annotated[tuple[Name, ...], Field(max_length=64)] | Any = Field(
        description="the only attributes that may be set beside SEPT_VE_DISABLE"
    )


class SgxForm(_Form):
    """What an SGX quote must say."""

    tcb: TcbForm
    machines: Machines | Any
    mr_enclave: EnclaveDigests | Any
    mr_signer: EnclaveDigests | Any
    isv_prod_id: Count | Any
    isv_svn: Count | Any = Field(description="the least security version that is taken")


GENUINE_TCB: Final = TcbForm(collateral="if-given", statuses=("UpToDate",), advisories="any", evaluation_number="any")
GENUINE_TDX: Final = TdxForm(
    tcb=GENUINE_TCB,
    machines="any",
    mr_seam="any",
    mr_td="any",
    rtmr0="any",
    rtmr1="any",
    rtmr2="any",
    rtmr3="any",
    mr_config_id="any",
    mr_owner="any",
    mr_owner_config="any",
    service_td="any",
    sept_ve_disable="any",
    attributes="any",
)
"""What `hermetic verify` asks of stored evidence when nobody names a policy: never good enough to release a key."""
GENUINE_SGX: Final = SgxForm(
    tcb=GENUINE_TCB, machines="any", mr_enclave="any", mr_signer="any", isv_prod_id="any", isv_svn="any"
)


def appraise_tdx(checks: Checks, claims: TdxClaims, form: TdxForm) -> None:
    """Record in `checks` what `form` says to the genuine `claims`: one check for each rule."""
    checks.demand("tdx.debug", not claims.debug, "a domain that the host cannot look into", "a debug domain")
    _appraise_platform(checks, "tdx", claims.platform, form.tcb, form.machines)
    for name, got in _measurements(claims).items():
        _one_of(checks, f"tdx.{name}", getattr(form, name), got)
    if form.service_td == "none":
        service = claims.mr_service_td
        none = service is not None and not service.strip("0")
        checks.demand("tdx.service_td", none, "a TD 1.5 report without a service domain", service or "a TD 1.0 report")
    else:
        _one_of(checks, "tdx.service_td", form.service_td, claims.mr_service_td)
    if form.sept_ve_disable == "any":
        checks.skip("tdx.sept_ve_disable", "any is accepted")
    else:
        checks.demand("tdx.sept_ve_disable", claims.sept_ve_disable, "SEPT_VE_DISABLE", claims.attributes)
    if form.attributes == "any":
        checks.skip("tdx.attributes", "any is accepted")
    else:
        known = {*form.attributes, "SEPT_VE_DISABLE"}
        checks.demand("tdx.attributes", known.issuperset(claims.attributes), known, claims.attributes)


def appraise_sgx(checks: Checks, claims: SgxClaims, form: SgxForm) -> None:
    """Record in `checks` what `form` says to the genuine `claims`: one check for each rule."""
    checks.demand("sgx.debug", not claims.debug, "an enclave that nobody can look into", "a debug enclave")
    _appraise_platform(checks, "sgx", claims.platform, form.tcb, form.machines)
    _one_of(checks, "sgx.mr_enclave", form.mr_enclave, claims.mr_enclave)
    _one_of(checks, "sgx.mr_signer", form.mr_signer, claims.mr_signer)
    _one_of(
        checks,
        "sgx.isv_prod_id",
        form.isv_prod_id if form.isv_prod_id == "any" else (form.isv_prod_id,),
        claims.isv_prod_id,
    )
    _at_least(checks, "sgx.isv_svn", form.isv_svn, claims.isv_svn)


def _measurements(claims: TdxClaims) -> Mapping[str, str]:
    return {
        "mr_seam": claims.mr_seam,
        "mr_td": claims.mr_td,
        "mr_config_id": claims.mr_config_id,
        "mr_owner": claims.mr_owner,
        "mr_owner_config": claims.mr_owner_config,
        **{f"rtmr{index}": value for index, value in enumerate(claims.rtmrs)},
    }


def _appraise_platform(
    checks: Checks, kind: str, platform: PlatformClaims, form: TcbForm, machines: Machines | Any
) -> None:
    if machines == "any":
        checks.skip(f"{kind}.machine", "any is accepted")
    else:
        got = [one for one in (platform.ppid, platform.instance_id) if one is not None]
        checks.demand(f"{kind}.machine", not set(machines).isdisjoint(got), machines, got)
    tcb, names = platform.tcb, ("tcb.status", "tcb.advisories", "tcb.evaluation_number")
    if tcb is None:
        for name in names:
            if form.collateral == "required":
                checks.fail(f"{kind}.{name}", "collateral for this platform", "none")
            else:
                checks.skip(f"{kind}.{name}", "no collateral was given")
        return
    checks.demand(f"{kind}.tcb.status", tcb.status in form.statuses, form.statuses, tcb.status)
    if form.advisories == "any":
        checks.skip(f"{kind}.tcb.advisories", "any is accepted")
    else:
        checks.demand(
            f"{kind}.tcb.advisories", set(form.advisories).issuperset(tcb.advisories), form.advisories, tcb.advisories
        )
    _at_least(checks, f"{kind}.tcb.evaluation_number", form.evaluation_number, tcb.evaluation_number)


def _one_of(checks: Checks, name: str, wanted: tuple[object, ...] | Any, got: object) -> None:
    if wanted == "any":
        checks.skip(name, "any is accepted")
    else:
        checks.demand(name, got in wanted, wanted, "none" if got is None else got)


def _at_least(checks: Checks, name: str, wanted: int | Any, got: int) -> None:
    if wanted == "any":
        checks.skip(name, "any is accepted")
    else:
        checks.demand(name, got >= wanted, f"at least {wanted}", got)
