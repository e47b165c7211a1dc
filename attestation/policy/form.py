"""One form, as read from TOML: what evidence must show before a key is released for the models that it names.

A form leaves nothing out: a field that is not written is refused, and "anything goes" is written as "any". The tables
of the kinds are modules of their own. Judging by a form is verdict.py's.
"""

import fnmatch
import hashlib
import re
import tomllib
from typing import Annotated, ClassVar, Final, Literal, Self, TypeAlias, get_args

from pydantic import Field, StrictBool, StringConstraints, ValidationError, field_validator, model_validator

from hermetic.attestation.claims import Name, Profile
from hermetic.attestation.evidence import canonical
from hermetic.attestation.policy.dcap import SgxForm, TdxForm
from hermetic.attestation.policy.hermetic import HermeticForm
from hermetic.attestation.policy.nvgpu import NvGpuForm
from hermetic.attestation.policy.snp import SnpForm
from hermetic.attestation.policy.tpm import TpmForm
from hermetic.attestation.policy.values import Form, Identities, distinct
from hermetic.errors import ConfigurationError

FORMAT: Final = "hermetic-appraisal-policy/1"
MAX_POLICY_SIZE: Final = 256 * 1024  # bytes
MAX_DEPTH: Final = 16  # tables, lists, parts of a key
BUILT_IN: Final = "genuine"
"""Name of the built-in form, which no file may carry."""

Kind: TypeAlias = Literal["tpm", "snp", "tdx", "sgx", "nvgpu", "sample"]
"""Kinds of claims, not of evidence on the wire: one piece of evidence can make claims of two kinds."""
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
CPU_KINDS: Final = frozenset({"snp", "tdx", "sgx"})
_ON_THE_WIRE: Final = {
    "az-snp-vtpm": '"snp" and "tpm"',
    "az-tdx-vtpm": '"tdx" and "tpm"',
    "nvidia": '"nvgpu"',
}
"""Kinds of evidence whose claims are called otherwise."""

_QUIET: Final = re.compile(r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
"""Comments and texts."""
_FIELD: Final = re.compile(r"[A-Za-z0-9_]+")
_TYPES: Final = frozenset({"str", "int", "StatusUntil", "AdvisoryUntil", "AtLeast", "FloorsForm", "TurinFloorsForm"})


class AppraisalPolicy(Form):
    """One form, as read from TOML."""

    is_built_in: ClassVar[bool] = False

    format: Literal["hermetic-appraisal-policy/1"]
    name: Name
    models: Annotated[tuple[Annotated[str, StringConstraints(min_length=1, max_length=256)], ...], Field(min_length=1)]
    profile: Profile
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1, max_length=8)]
    allow_unmeasured_code: StrictBool
    client_certificate: Identities | Literal["required", "any"]
    allow_any_machine: StrictBool
    hermetic: HermeticForm
    tpm: TpmForm | None = None
    snp: SnpForm | None = None
    tdx: TdxForm | None = None
    sgx: SgxForm | None = None
    nvgpu: NvGpuForm | None = None

    @field_validator("kinds", mode="before")
    @classmethod
    def _are_of_claims(cls, kinds: object) -> object:
        """Say which claims a kind of evidence makes, where a form names that."""
        for kind in kinds if isinstance(kinds, list | tuple) else ():
            if isinstance(kind, str) and kind in _ON_THE_WIRE:
                raise ValueError(
                    f'"{kind}" is a kind of evidence: write the claims that it makes, {_ON_THE_WIRE[kind]}'
                )
        return kinds

    @model_validator(mode="after")
    def _is_coherent(self) -> Self:
        """Refuse a form that contradicts itself or silently means "anyone"."""
        if self.name == BUILT_IN and not self.is_built_in:
            raise ValueError(f'name: "{BUILT_IN}" is the built-in form, which accepts any genuine evidence')
        distinct(self.kinds)
        for kind in KINDS:
            if kind != "sample" and (kind in self.kinds) != (getattr(self, kind) is not None):
                raise ValueError(f'a table [{kind}] is needed exactly when kinds names "{kind}"')
        if "sample" in self.kinds and self.profile != "demo":
            raise ValueError('kinds: "sample" proves nothing and needs profile = "demo"')
        if not self.names_machine and not self.allow_any_machine:
            raise ValueError(
                "evidence says what a machine runs, not whose it is: write tpm.ek, snp.chip_ids, tdx.machines, "
                "sgx.machines or client_certificate, or allow_any_machine = true"
            )
        if not self.allow_unmeasured_code and not self._can_measure_code:
            raise ValueError(
                "without a kind that measures code (tpm, tdx, or snp or sgx whose measurement_covers_code), "
                "allow_unmeasured_code must be true"
            )
        return self

    @property
    def names_machine(self) -> bool:
        """Whether only certain machines, or holders of certain certificates, are accepted.

        A list of GPUs does not count: a GPU answers whoever can talk to it, so it may serve a CPU elsewhere.
        """
        lists = (
            self.client_certificate,
            "any" if self.tpm is None else self.tpm.ek,
            "any" if self.snp is None else self.snp.chip_ids,
            "any" if self.tdx is None else self.tdx.machines,
            "any" if self.sgx is None else self.sgx.machines,
        )
        return any(one != "any" for one in lists)

    @property
    def _can_measure_code(self) -> bool:
        launched = any(form is not None and form.measurement_covers_code for form in (self.snp, self.sgx))
        return launched or self.tpm is not None or self.tdx is not None

    @classmethod
    def load(cls, toml: str | bytes) -> Self:
        """Read a form; raises `ConfigurationError` naming every missing, unknown or malformed field."""
        data = toml.encode() if isinstance(toml, str) else toml
        if len(data) > MAX_POLICY_SIZE:
            raise ConfigurationError(f"appraisal policy: expected at most {MAX_POLICY_SIZE} bytes, got {len(data)}")
        try:
            text = data.decode()
            _demand_shallow(text)
            return cls.model_validate(tomllib.loads(text))
        except ValidationError as error:
            raise ConfigurationError(f"appraisal policy: {_problems(error)}") from error
        except (ValueError, RecursionError) as error:  # not UTF-8, or not TOML
            raise ConfigurationError(f"appraisal policy: expected TOML, got {error}") from error

    def digest(self) -> bytes:
        """SHA-256 over the form's canonical JSON: the same for files that differ only in layout or comments."""
        return hashlib.sha256(canonical(self.model_dump(mode="json", exclude_none=True))).digest()

    def matches(self, model: str) -> bool:
        """Whether the form is for the model called `model`."""
        return any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models)


def _demand_shallow(text: str) -> None:
    """Raise `ValueError` for nesting that no form has: a short text of it costs a reader of TOML all memory."""
    depth = dots = 0
    for mark in _QUIET.sub("", text):
        depth += (mark in "[{") - (mark in "]}")
        dots = 0 if mark == "\n" else dots + (mark == ".")
        if max(depth, dots) > MAX_DEPTH:
            raise ValueError(f"tables, lists or dotted keys nested deeper than {MAX_DEPTH}")


def _problems(error: ValidationError) -> str:
    """Each field with what is wrong about it; of what a field may be, only the branch that came furthest."""
    found: dict[tuple[str, ...], list[str]] = {}
    for item in error.errors():
        path = tuple(str(part) for part in item["loc"] if not _is_branch(part))
        found.setdefault(path, []).append(item["msg"])
    deepest = [path for path in found if not any(other != path and other[: len(path)] == path for other in found)]
    return "; ".join(f"{'.'.join(path) or 'form'}: {' or '.join(dict.fromkeys(found[path]))}" for path in deepest)


def _is_branch(part: int | str) -> bool:
    """Whether `part` of a location is the name of one of several types that a field may have, and no field's."""
    return isinstance(part, str) and (not _FIELD.fullmatch(part) or part in _TYPES)
