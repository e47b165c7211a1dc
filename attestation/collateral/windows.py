"""When to warn of an item's end, and how long after it the item may still be used (`hermetic-collateral-windows/1`)."""

import tomllib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator

from hermetic.attestation.collateral.items import Item
from hermetic.attestation.collateral.kinds import KINDS, REVOCATION, Kind
from hermetic.attestation.roots.grace import Grace
from hermetic.errors import ConfigurationError

MAX_FORM_SIZE: Final = 64 * 1024  # bytes
DEFAULT_WARNING: Final = 30  # days
KEYS: Final[frozenset[Kind]] = frozenset({"vcek", "vlek"})
"""Certificates of keys that sign evidence: these have no grace at all."""

State: TypeAlias = Literal["not-yet-valid", "valid", "expiring", "grace", "expired"]
STATES: Final[tuple[State, ...]] = ("not-yet-valid", "valid", "expiring", "grace", "expired")

Warning_: TypeAlias = Annotated[StrictInt, Field(ge=0, le=366)]  # days
GraceDays: TypeAlias = Annotated[StrictInt, Field(ge=0, le=90)]  # days


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Window(_Form):
    """Both numbers for one kind; what is left out is as for all kinds."""

    warn_before_days: Warning_ | None = None
    grace_days: GraceDays | None = None


class Windows(_Form):
    """The whole form."""

    format: Literal["hermetic-collateral-windows/1"] = "hermetic-collateral-windows/1"
    warn_before_days: Warning_ = DEFAULT_WARNING
    grace_days: GraceDays = 0
    kinds: Mapping[Kind, Window] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _keys_have_no_grace(self) -> Self:
        wrong = sorted(kind for kind in KEYS & self.kinds.keys() if self.kinds[kind].grace_days)
        if wrong:
            raise ValueError(f"kinds.{wrong[0]}.grace_days: expected none for a key that signs evidence")
        return self

    @classmethod
    def load(cls, toml: str | bytes) -> Self:
        """Read a form; raises `ConfigurationError` naming every member at fault."""
        data = toml.encode() if isinstance(toml, str) else toml
        if len(data) > MAX_FORM_SIZE:
            raise ConfigurationError(f"collateral windows: expected at most {MAX_FORM_SIZE} bytes, got {len(data)}")
        try:
            members = tomllib.loads(data.decode())
            if "format" not in members:
                raise ConfigurationError('collateral windows: expected format = "hermetic-collateral-windows/1"')
            return cls.model_validate(members)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'form'}: {e['msg']}" for e in error.errors())
            raise ConfigurationError(f"collateral windows: {faults}") from error
        except ValueError as error:  # not UTF-8, or not TOML
            raise ConfigurationError(f"collateral windows: expected TOML, got {error}") from error

    def warning(self, kind: Kind) -> timedelta:
        """How long before its end an item of `kind` is warned of."""
        own = self.kinds.get(kind, Window()).warn_before_days
        return timedelta(days=self.warn_before_days if own is None else own)

    def grace_of(self, kind: Kind) -> timedelta:
        """How long after its end an item of `kind` may still be used."""
        own = self.kinds.get(kind, Window()).grace_days
        inherited = 0 if kind in REVOCATION | KEYS else self.grace_days
        return timedelta(days=inherited if own is None else own)

    def grace(self) -> Grace:
        """The grace of all kinds, as verifiers take it."""
        found = {kind: self.grace_of(kind) for kind in KINDS}
        return Grace({kind: period for kind, period in found.items() if period})

    def state(self, item: Item, time: datetime, within: timedelta | None = None) -> State:
        """The state of `item` at `time`; `within` replaces the warning window."""
        if time < item.start:
            return "not-yet-valid"
        if time <= item.end:
            warning = self.warning(item.kind) if within is None else within
            return "expiring" if item.end - time <= warning else "valid"
        return "grace" if time <= item.end + self.grace_of(item.kind) else "expired"


DEFAULT: Final = Windows()
"""30 days of warning, no grace."""
