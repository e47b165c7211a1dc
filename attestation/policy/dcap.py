"""What a TDX domain, or SGX enclave, and the platform below it must be: the tables [tdx] and [sgx], and their rules.

A status or an advisory may be accepted until a time: before it with a warning, after it no more. Debug is never
acceptable: it has no field, and is refused in verdict.py.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import Field, StrictBool, model_validator

from hermetic.attestation.abi.dcap_collateral import Status
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Name, PlatformClaims, SgxClaims, TcbClaims, TdxClaims
from hermetic.attestation.policy import rules
from hermetic.attestation.policy.values import (
    MAX_LIST,
    AdvisoryUntil,
    Any,
    Digests,
    Floor,
    Form,
    LongDigests,
    Machine,
    Required,
    StatusUntil,
    distinct,
)

Machines: TypeAlias = Annotated[tuple[Machine, ...], Field(min_length=1, max_length=MAX_LIST)]
Configuration: TypeAlias = Literal["dynamic-platform", "cached-keys", "smt"]
TCB_RULES: Final = ("status", "advisories", "evaluation_number")


class TcbForm(Form):
    """How the platform must stand, by Intel's collateral."""

    collateral: Literal["required", "if-given"]
    statuses: Annotated[tuple[Status | StatusUntil, ...], Field(min_length=1, max_length=16)]
    advisories: Annotated[tuple[Name | AdvisoryUntil, ...], Field(max_length=MAX_LIST)] | Any = Field(
        description="the only advisories that may stand against the platform"
    )
    evaluation_number: Floor | Any = Field(description="the least number of Intel's evaluation that is taken")

    @model_validator(mode="after")
    def _is_coherent(self) -> Self:
        if "Revoked" in map(_status, self.statuses):
            raise ValueError("statuses: a revoked platform is never acceptable")
        distinct(_status(one) for one in self.statuses)
        distinct(_advisory(one) for one in self.advisories if self.advisories != "any")
        return self


class TdxForm(Form):
    """What a TDX quote must say."""

    tcb: TcbForm
    machines: Machines | Any = Field(description="PPIDs or platform instance ids")
    configuration: Annotated[tuple[Configuration, ...], Field(max_length=8)] | Any = Field(
        description="the only configurations of the platform that may be on"
    )
    mr_seam: LongDigests | Any
    mr_td: LongDigests | Any
    rtmr0: LongDigests | Any
    rtmr1: LongDigests | Any
    rtmr2: LongDigests | Any
    rtmr3: LongDigests | Any
    mr_config_id: LongDigests | Any
    mr_owner: LongDigests | Any
    mr_owner_config: LongDigests | Any
    service_td: LongDigests | Literal["none", "any"]
    sept_ve_disable: Required
    attributes: Annotated[tuple[Name, ...], Field(max_length=64)] | Any = Field(
        description="the only attributes that may be set beside SEPT_VE_DISABLE"
    )
    root_hashes: Digests | Any
    secure_boot: Required


class SgxForm(Form):
    """What an SGX quote must say."""

    tcb: TcbForm
    machines: Machines | Any
    configuration: Annotated[tuple[Configuration, ...], Field(max_length=8)] | Any
    mr_enclave: Digests | Any
    mr_signer: Digests | Any
    isv_prod_id: Floor | Any = Field(description="exactly this product")
    isv_svn: Floor | Any = Field(description="the least security version that is taken")
    measurement_covers_code: StrictBool

    @model_validator(mode="after")
    def _is_coherent(self) -> Self:
        if self.measurement_covers_code and self.mr_enclave == "any":
            raise ValueError("measurement_covers_code: any mr_enclave covers no code: write its values")
        return self


def judge_tdx(checks: Checks, claims: TdxClaims, form: TdxForm, time: datetime) -> None:
    """Record in `checks` what `form` says to the genuine `claims` at `time`: one check for each rule."""
    _judge_platform(checks, "tdx", claims.platform, form, time)
    for name, got in _measurements(claims).items():
        rules.one_of(checks, f"tdx.{name}", getattr(form, name), got)
    if form.service_td == "none":
        service = claims.mr_service_td
        none = service is not None and not service.strip("0")
        checks.demand("tdx.service_td", none, "a TD 1.5 report without a service domain", service or "a TD 1.0 report")
    else:
        rules.one_of(checks, "tdx.service_td", form.service_td, claims.mr_service_td)
    rules.flag(checks, "tdx.sept_ve_disable", form.sept_ve_disable, claims.sept_ve_disable)
    others = [name for name in claims.attributes if name != "SEPT_VE_DISABLE"]
    rules.only(checks, "tdx.attributes", form.attributes, others)
    rules.flag(checks, "tdx.secure_boot", form.secure_boot, claims.secure_boot)


def judge_sgx(checks: Checks, claims: SgxClaims, form: SgxForm, time: datetime) -> None:
    """Record in `checks` what `form` says to the genuine `claims` at `time`: one check for each rule."""
    _judge_platform(checks, "sgx", claims.platform, form, time)
    rules.one_of(checks, "sgx.mr_enclave", form.mr_enclave, claims.mr_enclave)
    rules.one_of(checks, "sgx.mr_signer", form.mr_signer, claims.mr_signer)
    product = form.isv_prod_id if form.isv_prod_id == "any" else (form.isv_prod_id,)
    rules.one_of(checks, "sgx.isv_prod_id", product, claims.isv_prod_id)
    rules.at_least(checks, "sgx.isv_svn", form.isv_svn, claims.isv_svn)


def lapsing(claims: TdxClaims | SgxClaims, form: TcbForm) -> tuple[str, ...]:
    """What `form` accepts of the platform only until a time: a warning each."""
    tcb = claims.platform.tcb
    if tcb is None:
        return ()
    limits = {status: until for status, until in _statuses(form).items() if status == tcb.status}
    if form.advisories != "any":
        limits |= {name: until for name, until in _advisories(form).items() if name in tcb.advisories}
    return tuple(
        f"{claims.kind}: {what} accepted until {until:%Y-%m-%dT%H:%M:%SZ}" for what, until in limits.items() if until
    )


def _measurements(claims: TdxClaims) -> Mapping[str, str]:
    return {
        "mr_seam": claims.mr_seam,
        "mr_td": claims.mr_td,
        "mr_config_id": claims.mr_config_id,
        "mr_owner": claims.mr_owner,
        "mr_owner_config": claims.mr_owner_config,
        **{f"rtmr{index}": value for index, value in enumerate(claims.rtmrs)},
    }


def _judge_platform(
    checks: Checks, kind: str, platform: PlatformClaims, form: TdxForm | SgxForm, time: datetime
) -> None:
    if form.machines == "any":
        checks.skip(f"{kind}.machine", rules.ACCEPTED)
    else:
        got = [one for one in (platform.ppid, platform.instance_id) if one is not None]
        checks.demand(f"{kind}.machine", not set(form.machines).isdisjoint(got), form.machines, got)
    on = [name for name, is_on in platform.configuration.items() if is_on]
    rules.only(checks, f"{kind}.configuration", form.configuration, on)
    if platform.tcb is not None:
        _judge_tcb(checks, kind, platform.tcb, form.tcb, time)
        return
    for name in TCB_RULES:
        if form.tcb.collateral == "required":
            checks.fail(f"{kind}.tcb.{name}", "collateral for this platform", "none")
        else:
            checks.skip(f"{kind}.tcb.{name}", "no collateral was given")


def _judge_tcb(checks: Checks, kind: str, tcb: TcbClaims, form: TcbForm, time: datetime) -> None:
    _in_time(checks, f"{kind}.tcb.status", _statuses(form), [tcb.status], time)
    if form.advisories == "any":
        checks.skip(f"{kind}.tcb.advisories", rules.ACCEPTED)
    else:
        _in_time(checks, f"{kind}.tcb.advisories", _advisories(form), tcb.advisories, time)
    rules.at_least(checks, f"{kind}.tcb.evaluation_number", form.evaluation_number, tcb.evaluation_number)


def _in_time(
    checks: Checks, name: str, accepted: Mapping[str, datetime | None], got: Sequence[str], time: datetime
) -> None:
    """The rule `name`: everything in `got` is accepted, and still is at `time`."""
    late = [one for one in got if (until := accepted.get(one)) is not None and time >= until]
    holds = not late and set(got).issubset(accepted)
    wanted = [one if until is None else f"{one} until {until:%Y-%m-%dT%H:%M:%SZ}" for one, until in accepted.items()]
    checks.demand(name, holds, wanted, f"{', '.join(got) or 'none'}{f' at {time}' if late else ''}")


def _statuses(form: TcbForm) -> dict[str, datetime | None]:
    return {_status(one): one.until if isinstance(one, StatusUntil) else None for one in form.statuses}


def _advisories(form: TcbForm) -> dict[str, datetime | None]:
    found = () if form.advisories == "any" else form.advisories
    return {_advisory(one): one.until if isinstance(one, AdvisoryUntil) else None for one in found}


def _status(one: Status | StatusUntil) -> str:
    return one.status if isinstance(one, StatusUntil) else one


def _advisory(one: str | AdvisoryUntil) -> str:
    return one.advisory if isinstance(one, AdvisoryUntil) else one
