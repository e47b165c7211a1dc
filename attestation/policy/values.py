"""What the fields of an appraisal policy are made of: lists, floors, switches, and statuses with an expiry.

Every field of a form is written; where anything goes, it says "any". A list is never empty: an empty one would read as
"nothing", and mean a typing error.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from hermetic.attestation.abi.dcap_collateral import Status
from hermetic.attestation.claims import Name, Sha256Hex, Sha384Hex

MAX_LIST: Final = 1024  # entries of one list
MAX_SVN: Final = 0xFFFF_FFFF

Any: TypeAlias = Literal["any"]
Wish: TypeAlias = Literal["required", "forbidden", "any"]
"""What a flag must be."""
Required: TypeAlias = Literal["required", "any"]
Digests: TypeAlias = Annotated[tuple[Sha256Hex, ...], Field(min_length=1, max_length=MAX_LIST)]
LongDigests: TypeAlias = Annotated[tuple[Sha384Hex, ...], Field(min_length=1, max_length=MAX_LIST)]
Names: TypeAlias = Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_LIST)]
Identities: TypeAlias = Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_LIST)]
Floor: TypeAlias = Annotated[int, Field(ge=0, le=MAX_SVN, strict=True)]
"""The least number that is taken."""


class Form(BaseModel):
    """Every field must be written; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)


def _names_somebody(identifier: str) -> str:
    if not identifier.strip("0"):
        raise ValueError("expected an identifier of one machine, got zeros, which is what a masked one says")
    return identifier


def _in_utc(time: datetime) -> datetime:
    # One meaning, one digest: however the file writes the time zone.
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("expected a time between the years 1 and 9999, UTC") from None


Chip: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^(?:[0-9a-f]{16}|[0-9a-f]{128})$"), AfterValidator(_names_somebody)
]
Machine: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$"), AfterValidator(_names_somebody)]
Until: TypeAlias = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class StatusUntil(Form):
    """A status that is accepted before `until`, with a warning."""

    status: Status
    until: Until


class AdvisoryUntil(Form):
    """An advisory that may stand against a platform before `until`, with a warning."""

    advisory: Name
    until: Until


def distinct(names: Iterable[str]) -> None:
    """Raise `ValueError` where one of `names` stands twice: with and without an expiry, say."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"expected each once, got {name} twice")
        seen.add(name)
