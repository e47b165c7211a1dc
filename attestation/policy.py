"""Is the evidence acceptable? One form per model or pattern of names (docs/spec/appraisal-policy.md).

A form leaves nothing out: a field that is not written is refused, and "anything goes" is written as "any". `appraise`
is pure and reports every failure together. Whether evidence is genuine was asked before, by verifiers/.
"""

import fnmatch
import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints, ValidationError, model_validator

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, HermeticClaims, Name, Profile, Sha256Hex, TpmClaims
from hermetic.attestation.evidence import canonical
from hermetic.errors import AppraisalError, ConfigurationError

FORMAT: Final = "hermetic-appraisal-policy/1"
MAX_POLICY_SIZE: Final = 256 * 1024  # bytes
MAX_LIST: Final = 1024  # entries of one list
ZEROS: Final = "0" * 64

Any: TypeAlias = Literal["any"]
Digests: TypeAlias = Annotated[tuple[Sha256Hex, ...], Field(min_length=1, max_length=MAX_LIST)]
PcrIndex: TypeAlias = Annotated[str, StringConstraints(pattern=r"^(1?[0-9]|2[0-3])$")]
Identities: TypeAlias = Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_LIST)]
Kind: TypeAlias = Literal["tpm", "sample"]


class _Form(BaseModel):
    """Every field must be written; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HermeticForm(_Form):
    """What our own runtime data must say. Guests of Trustee send none, and meet only `required = false`."""

    required: StrictBool
    manifest_digest: Digests | Any
    trusted_publishers: Digests | Any
    waivers: tuple[Name, ...] | Any = Field(description="the only waivers that are allowed")
    zeroing: Literal["enforced"] | Any


class TpmForm(_Form):
    """What a TPM's quote must say."""

    ek: Digests | Any
    provisioned_ak: StrictBool  # accept an AK whose key an operator entered by hand: no EK, no enrolled boot
    pcrs: Annotated[dict[PcrIndex, Digests | Any], Field(max_length=24)]
    root_hashes: Digests | Any
    secure_boot: Literal["required"] | Any
    log_base: Digests | Literal["zeros", "any"]


class AppraisalPolicy(_Form):
    """One form, as read from TOML."""

    format: Literal["hermetic-appraisal-policy/1"]
    name: Name
    models: Annotated[tuple[Annotated[str, StringConstraints(min_length=1, max_length=256)], ...], Field(min_length=1)]
    profile: Profile
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1, max_length=8)]
    allow_unmeasured_code: StrictBool
    client_certificate: (
        Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_LIST)] | Literal["required", "any"]
    )
    allow_any_machine: StrictBool
    hermetic: HermeticForm
    tpm: TpmForm | None = None

    @model_validator(mode="after")
    def _is_coherent(self) -> Self:
        """Refuse a form that contradicts itself or silently means "anyone"."""
        if ("tpm" in self.kinds) != (self.tpm is not None):
            raise ValueError('a table [tpm] is needed exactly when kinds names "tpm"')
        if "sample" in self.kinds and self.profile != "demo":
            raise ValueError('kinds: "sample" proves nothing and needs profile = "demo"')
        names_machine = self.client_certificate != "any" or (self.tpm is not None and self.tpm.ek != "any")
        if not names_machine and not self.allow_any_machine:
            raise ValueError(
                "evidence says what a machine runs, not whose it is: write tpm.ek or client_certificate, "
                "or allow_any_machine = true"
            )
        if "tpm" not in self.kinds and not self.allow_unmeasured_code:
            raise ValueError("without a kind that measures code, allow_unmeasured_code must be true")
        return self

    @classmethod
    def load(cls, toml: str | bytes) -> Self:
        """Read a form; raises `ConfigurationError` naming every missing, unknown or malformed field."""
        data = toml.encode() if isinstance(toml, str) else toml
        if len(data) > MAX_POLICY_SIZE:
            raise ConfigurationError(f"appraisal policy: expected at most {MAX_POLICY_SIZE} bytes, got {len(data)}")
        try:
            return cls.model_validate(tomllib.loads(data.decode()))
        except ValidationError as error:
            raise ConfigurationError(f"appraisal policy: {_problems(error)}") from error
        except ValueError as error:  # not UTF-8, or not TOML
            raise ConfigurationError(f"appraisal policy: expected TOML, got {error}") from error

    def digest(self) -> bytes:
        """SHA-256 over the form's canonical JSON: the same for files that differ only in layout or comments."""
        return hashlib.sha256(canonical(self.model_dump(mode="json", exclude_none=True))).digest()

    def matches(self, model: str) -> bool:
        """Whether the form is for the model called `model`."""
        return any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True, slots=True)
class Appraisal:
    """Claims that a form accepts, and what it looked at; `warnings` are what the form lets pass knowingly."""

    claims: Claims
    policy: str
    policy_digest: str  # SHA-256, hex
    checks: tuple[str, ...]
    warnings: tuple[str, ...]


def appraise(claims: Claims, policy: AppraisalPolicy) -> Appraisal:
    """Accept genuine `claims` under `policy`, or raise `AppraisalError` with every failure."""
    checks = Checks()
    _appraise_kinds(checks, claims, policy)
    _appraise_machine(checks, claims, policy)
    _appraise_hermetic(checks, claims.hermetic, policy)
    if policy.tpm is not None and claims.tpm is not None:
        software_fits = policy.profile == "demo" or not claims.tpm.software
        checks.demand("tpm.software", software_fits, "a hardware TPM", "a software TPM")
        _appraise_tpm(checks, claims.tpm, policy.tpm)
        _appraise_code(checks, claims.tpm, policy)
        _appraise_log(checks, claims.tpm, claims.hermetic, policy.tpm)
    checks.raise_failures(AppraisalError)
    return Appraisal(claims, policy.name, policy.digest().hex(), checks.passed, _warnings(claims, policy))


def choose(policies: Sequence[AppraisalPolicy], model: str) -> AppraisalPolicy:
    """The form for `model`: one that names it exactly, else the one with the longest matching pattern.

    Raises `ConfigurationError` when there is none, or two that fit equally well.
    """
    ranked = sorted(
        ((_specificity(policy, model), policy) for policy in policies if policy.matches(model)),
        key=lambda pair: pair[0],
        reverse=True,
    )
    if not ranked:
        raise ConfigurationError(f"appraisal policy: expected one for model {model!r}, got none")
    best = [policy for rank, policy in ranked if rank == ranked[0][0]]
    if len(best) > 1:
        names = ", ".join(policy.name for policy in best)
        raise ConfigurationError(f"appraisal policy: expected one best fit for model {model!r}, got {names}")
    return best[0]


def _specificity(policy: AppraisalPolicy, model: str) -> tuple[bool, int]:
    fits = [pattern for pattern in policy.models if fnmatch.fnmatchcase(model, pattern)]
    return (model in fits, max(map(len, fits)))


def _appraise_kinds(checks: Checks, claims: Claims, policy: AppraisalPolicy) -> None:
    present = {kind.kind for kind in claims.kinds}
    for kind in policy.kinds:
        checks.demand(f"kinds.{kind}", kind in present, f"evidence of kind {kind}", present)
    checks.demand("kinds", present.issubset(policy.kinds), f"only {', '.join(policy.kinds)}", present)
    checks.demand(
        "kinds.sample", "sample" not in present or policy.profile == "demo", "no evidence that proves nothing", present
    )
    for one in claims.kinds:
        # There is no field to allow it: what runs under a debugger has no secrets.
        checks.demand(f"{one.kind}.debug", not one.debug, "debug off", "debug on")


def _appraise_machine(checks: Checks, claims: Claims, policy: AppraisalPolicy) -> None:
    wanted = policy.client_certificate
    if wanted == "required":
        checks.demand("client_certificate", claims.client is not None, "a verified client certificate", "none")
    elif wanted != "any":
        checks.demand("client_certificate", claims.client in wanted, wanted, claims.client or "none")


def _appraise_hermetic(checks: Checks, claims: HermeticClaims | None, policy: AppraisalPolicy) -> None:
    form = policy.hermetic
    if claims is None:
        checks.demand("hermetic.required", not form.required, "runtime-data.hermetic", "none")
        return
    checks.demand("hermetic.profile", policy.profile in {claims.profile, "demo"}, policy.profile, claims.profile)
    # A serving key is certified before any model is there; its manifest is none.
    if claims.purpose == "model":
        _one_of(checks, "hermetic.manifest_digest", form.manifest_digest, claims.manifest_digest)
    _one_of(checks, "hermetic.trusted_publishers", form.trusted_publishers, claims.trusted_publishers)
    if form.waivers != "any":
        waived = claims.waivers
        allowed = waived is not None and set(waived).issubset(form.waivers)
        checks.demand("hermetic.waivers", allowed, f"only {list(form.waivers)}", "unsaid" if waived is None else waived)
    if form.zeroing != "any":
        checks.equal("hermetic.zeroing", form.zeroing, claims.zeroing)


def _appraise_tpm(checks: Checks, claims: TpmClaims, form: TpmForm) -> None:
    if not form.provisioned_ak:
        checks.equal("tpm.enrolled", "certificate", claims.enrolled)
    _one_of(checks, "tpm.ek", form.ek, claims.ek)
    for index, wanted in form.pcrs.items():
        _one_of(checks, f"tpm.pcrs.{index}", wanted, claims.pcrs.get(index))
    if form.secure_boot == "required":
        checks.demand("tpm.secure_boot", claims.secure_boot is True, "on", claims.secure_boot)


def _appraise_code(checks: Checks, claims: TpmClaims, policy: AppraisalPolicy) -> None:
    form, code = policy.tpm, claims.measured_code
    if policy.allow_unmeasured_code or form is None:
        return
    checks.demand("tpm.code_measured", code is not None, "code measured by a chain from boot", "no such chain")
    if code is None:
        return
    # Root can extend a PCR and append to the log after boot: only pinned values keep the chain whole.
    loose = [str(index) for index in code.rests_on if str(index) not in form.pcrs]
    checks.demand("tpm.code_pinned", not loose, f"reference values (or any) for PCRs {list(code.rests_on)}", loose)
    if form.root_hashes != "any":
        pinned = bool(code.root_hashes) and set(code.root_hashes).issubset(form.root_hashes)
        checks.demand("tpm.root_hashes", pinned, form.root_hashes, code.root_hashes)


def _appraise_log(checks: Checks, claims: TpmClaims, hermetic: HermeticClaims | None, form: TpmForm) -> None:
    if form.log_base != "any" and claims.log_base is not None:
        wanted = (ZEROS,) if form.log_base == "zeros" else form.log_base
        checks.demand("tpm.log_base", claims.log_base in wanted, wanted, claims.log_base)
    if hermetic is not None and hermetic.purpose == "model":
        # Never a choice: the manifest is measured before its key is asked for.
        measured = hermetic.manifest_digest in claims.manifests
        checks.demand("tpm.manifests", measured, hermetic.manifest_digest, claims.manifests)


def _one_of(checks: Checks, name: str, wanted: Sequence[str], got: str | None) -> None:
    if wanted != "any":
        checks.demand(name, got in wanted, wanted, got or "none")


def _warnings(claims: Claims, policy: AppraisalPolicy) -> tuple[str, ...]:
    """What the form lets pass knowingly, to be shown in red."""
    tpm = claims.tpm
    found: Mapping[str, bool] = {
        "code not measured": not any(kind.code_measured for kind in claims.kinds),
        "software TPM": tpm is not None and tpm.software,
        "sample evidence proves nothing": claims.kind("sample") is not None,
        "any machine": policy.allow_any_machine,
        "demo profile": policy.profile == "demo",
        "zeroing best effort": claims.hermetic is not None and claims.hermetic.zeroing == "best effort",
        "isolation waived": claims.hermetic is not None and bool(claims.hermetic.waivers),
    }
    return tuple(text for text, holds in found.items() if holds)


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'form'}: {item['msg']}" for item in error.errors())
