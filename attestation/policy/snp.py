"""What a SEV-SNP report must say: the table [snp] of a form, and its rules.

Debug is never acceptable: it has no field, and is refused in verdict.py. A generation without floors of its own is
refused: numbers of one do not compare with another's.
"""

from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import Field, StrictBool, StringConstraints, model_validator

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import SnpClaims, SnpTcb
from hermetic.attestation.policy import rules
from hermetic.attestation.policy.values import (
    MAX_LIST,
    Any,
    Chip,
    Digests,
    Floor,
    Form,
    LongDigests,
    Names,
    Wish,
)

Ids: TypeAlias = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")], ...], Field(min_length=1, max_length=MAX_LIST)
]
Chips: TypeAlias = Annotated[tuple[Chip, ...], Field(min_length=1, max_length=MAX_LIST)]
Vmpls: TypeAlias = Annotated[tuple[Annotated[int, Field(ge=0, le=3, strict=True)], ...], Field(min_length=1)]
Abi: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}$")]
Svn: TypeAlias = Annotated[int, Field(ge=0, le=255, strict=True)]
Mask: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]

MOMENTS: Final = ("reported", "current", "committed", "launch")
"""The four TCBs of a report: what its key is of, what runs, what cannot be rolled back, what the guest started on."""


class GuestPolicyForm(Form):
    """What the guest's own policy must allow or demand. DEBUG has no field: it is never accepted."""

    smt: Wish
    migrate_ma: Wish
    single_socket: Wish
    cxl_allow: Wish
    mem_aes_256_xts: Wish
    rapl_dis: Wish
    ciphertext_hiding: Wish
    page_swap_disable: Wish


class PlatformForm(Form):
    """What the platform must say of itself."""

    smt: Wish
    tsme: Wish
    ecc: Wish
    rapl_dis: Wish
    ciphertext_hiding: Wish
    alias_check_complete: Wish
    tio: Wish


class FloorsForm(Form):
    """The least security version numbers of one TCB; `fmc` on Turin only."""

    bootloader: Svn
    tee: Svn
    snp: Svn
    microcode: Svn


class TurinFloorsForm(FloorsForm):
    """The least security version numbers of one TCB of Turin."""

    fmc: Svn


class TcbForm(Form):
    """Floors of the four TCBs of one generation."""

    reported: FloorsForm | Any
    current: FloorsForm | Any
    committed: FloorsForm | Any
    launch: FloorsForm | Any


class TurinTcbForm(Form):
    """Floors of the four TCBs of Turin."""

    reported: TurinFloorsForm | Any
    current: TurinFloorsForm | Any
    committed: TurinFloorsForm | Any
    launch: TurinFloorsForm | Any


class GenerationsForm(Form):
    """Floors for each generation that is accepted; one that is not written is refused."""

    milan: TcbForm | None = Field(default=None, alias="Milan")
    genoa: TcbForm | None = Field(default=None, alias="Genoa")
    turin: TurinTcbForm | None = Field(default=None, alias="Turin")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if not any((self.milan, self.genoa, self.turin)):
            raise ValueError("expected at least one of Milan, Genoa, Turin")
        return self

    @property
    def accepted(self) -> dict[str, TcbForm | TurinTcbForm]:
        """The floors of each generation that is written."""
        every = {"Milan": self.milan, "Genoa": self.genoa, "Turin": self.turin}
        return {name: form for name, form in every.items() if form is not None}


class SnpForm(Form):
    """What a SEV-SNP report must say."""

    chip_ids: Chips | Any
    signed_by: Annotated[tuple[Literal["VCEK", "VLEK"], ...], Field(min_length=1, max_length=2)] | Any
    csp_ids: Names | Any = Field(description="whose VLEK; a VCEK is nobody's")
    measurement: LongDigests | Any
    measurement_covers_code: StrictBool
    host_data: Digests | Any
    id_key_digest: LongDigests | Any
    author_key_digest: LongDigests | Literal["none", "any"]
    family_id: Ids | Any
    image_id: Ids | Any
    guest_svn: Floor | Any
    vmpl: Vmpls | Any
    migration_agent: Digests | Literal["none", "any"]
    abi: Abi | Any = Field(description="the least firmware ABI that the guest's policy must demand")
    guest_policy: GuestPolicyForm
    platform: PlatformForm
    mitigations: Mask | Any = Field(description="bits that must be set in the current mitigation vector")
    tcb: GenerationsForm | Any

    @model_validator(mode="after")
    def _is_coherent(self) -> Self:
        if self.measurement_covers_code and self.measurement == "any":
            raise ValueError("measurement_covers_code: any measurement covers no code: write its values")
        return self


def judge_snp(checks: Checks, claims: SnpClaims, form: SnpForm) -> None:
    """Record in `checks` what `form` says to the genuine `claims`: one check for each rule."""
    rules.one_of(checks, "snp.chip_id", form.chip_ids, claims.chip_id)
    rules.one_of(checks, "snp.signed_by", form.signed_by, claims.signed_by)
    if claims.signed_by == "VCEK" and form.csp_ids != "any":
        checks.skip("snp.csp_id", "a VCEK is nobody's but AMD's")
    else:
        rules.one_of(checks, "snp.csp_id", form.csp_ids, claims.csp_id)
    for name in ("measurement", "host_data", "id_key_digest", "family_id", "image_id", "vmpl"):
        rules.one_of(checks, f"snp.{name}", getattr(form, name), getattr(claims, name))
    for name in ("author_key_digest", "migration_agent"):
        wanted = getattr(form, name)
        rules.one_of(checks, f"snp.{name}", (None,) if wanted == "none" else wanted, getattr(claims, name))
    rules.at_least(checks, "snp.guest_svn", form.guest_svn, claims.guest_svn)
    _judge_abi(checks, claims, form)
    for table, got in (("guest_policy", claims.policy), ("platform", claims.platform)):
        for name, wish in getattr(form, table):
            rules.flag(checks, f"snp.{table}.{name}", wish, name.replace("_", "-") in got)
    _judge_mitigations(checks, claims, form)
    _judge_tcb(checks, claims, form)


def _judge_abi(checks: Checks, claims: SnpClaims, form: SnpForm) -> None:
    if form.abi == "any":
        checks.skip("snp.abi", rules.ACCEPTED)
    else:
        checks.demand("snp.abi", _version(claims.abi) >= _version(form.abi), f"at least {form.abi}", claims.abi)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _judge_mitigations(checks: Checks, claims: SnpClaims, form: SnpForm) -> None:
    got = claims.current_mitigations
    if form.mitigations == "any":
        checks.skip("snp.mitigations", rules.ACCEPTED)
    else:
        wanted = int(form.mitigations, 16)
        holds = got is not None and int(got, 16) & wanted == wanted
        checks.demand("snp.mitigations", holds, f"the bits of {form.mitigations}", got or "a report that does not say")


def _judge_tcb(checks: Checks, claims: SnpClaims, form: SnpForm) -> None:
    if form.tcb == "any":
        checks.skip("snp.generation", rules.ACCEPTED)
        for moment in MOMENTS:
            checks.skip(f"snp.tcb.{moment}", rules.ACCEPTED)
        return
    floors = form.tcb.accepted
    checks.demand("snp.generation", claims.generation in floors, tuple(floors), claims.generation)
    for moment in MOMENTS:
        wanted = getattr(floors.get(claims.generation), moment, None)
        got: SnpTcb = getattr(claims, f"{moment}_tcb")
        if wanted is None:
            checks.skip(f"snp.tcb.{moment}", f"no floors for {claims.generation}, which is refused as such")
        elif wanted == "any":
            checks.skip(f"snp.tcb.{moment}", rules.ACCEPTED)
        else:
            for component, least in wanted:
                value = getattr(got, component)
                name = f"snp.tcb.{moment}.{component}"
                checks.demand(name, value is not None and value >= least, f"at least {least}", value)
