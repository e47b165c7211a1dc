"""A form on its way to becoming text: tables of entries, each with its value, what it is, and what to review.

Here: the draft, its TOML, and what several captures have in common. Which values a kind's table gets is the business of
the module of that kind.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeAlias, TypeVar

Value: TypeAlias = "bool | int | str | datetime | Sequence[Value] | Mapping[str, Value]"
_Claims = TypeVar("_Claims")

ANY: Final = "any"
_LONG: Final = 100  # characters of a line, after which a list has a line for each entry


class Entry(NamedTuple):
    """One field: its value, what it is, and why somebody must look at it before using the form."""

    name: str
    value: Value
    comment: str = ""
    review: str = ""


class Table(NamedTuple):
    """One table of the form; the form's own fields have no name."""

    name: str
    entries: tuple[Entry, ...]
    comment: str = ""


def text_of(tables: Iterable[Table]) -> str:
    """The TOML of `tables`, with comments."""
    return "\n".join(line for table in tables for line in _lines(table)).strip() + "\n"


def seen(values: Iterable[str | None]) -> tuple[str, ...] | str:
    """Exactly the values that were seen, in order; "any" where one was not there."""
    found = list(values)
    whole = [one for one in found if one is not None]
    return tuple(sorted(set(whole))) if whole and len(whole) == len(found) else ANY


def seen_or_none(values: Iterable[str | None]) -> tuple[str, ...] | str:
    """As `seen`, but "none" where there never was one."""
    found = list(values)
    return "none" if all(one is None for one in found) else seen(found)


def if_all(captures: Iterable[_Claims], holds: Callable[[_Claims], bool], value: Value = "required") -> Value:
    """The `value` where it holds of every capture, else "any"."""
    return value if all(map(holds, captures)) else ANY


def _lines(table: Table) -> Iterable[str]:
    yield ""
    if table.name:
        yield from _comment(table.comment)
        yield f"[{table.name}]"
    for entry in table.entries:
        yield from _comment(entry.comment)
        yield from _comment(f"REVIEW: {entry.review}" if entry.review else "")
        yield f"{entry.name} = {_value(entry.value, len(entry.name))}"


def _comment(text: str) -> Iterable[str]:
    # Claims come from evidence: none of their text may end the comment that it stands in.
    return [f"# {' '.join(line.split())}" for line in text.splitlines()]


def _value(value: Value, indent: int = 0) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    if isinstance(value, str):
        return json.dumps(value)  # a JSON string is a basic string of TOML
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_value(one)}" for name, one in value.items()) + " }" if value else "{}"
    items = [_value(one) for one in value]
    line = f"[{', '.join(items)}]"
    return line if len(line) + indent <= _LONG else "[\n" + "".join(f"    {one},\n" for one in items) + "]"
