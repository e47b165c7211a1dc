"""Requests that differ only in their id and their tensors' bytes: recognised by comparing, not by cutting. Pure.

Clients send the same request again and again. When one has been cut (scanner.py) and understood (codec.py), everything
in it but the contents of the id and of the raw tensors is kept as a `Form`: which bytes stand where. A later message of
the same length that has the same bytes in the same places is cut at the same places, because all tags and lengths are
among them. What is in the contents is still to be checked by whoever uses them.
"""

from collections.abc import Sequence
from typing import Final, Generic, TypeVar

PlanT = TypeVar("PlanT")

LENGTHS_KEPT: Final = 1024  # lengths of messages for which forms are kept
FORMS_PER_LENGTH: Final = 4  # requests to several models may be of one length

Span = tuple[int, int]


class Form(Generic[PlanT]):
    """One form: its constant bytes, and where id and tensors lie. `raw`: in the order that `plan` wants them."""

    __slots__ = ("constants", "id_end", "id_start", "plan", "raw")

    def __init__(self, message: bytes, id_span: Span, raw: Sequence[Span], order: Sequence[int], plan: PlanT) -> None:
        """`id_span` is empty where there is no id; `raw` as the message has it, `order` as the plan wants it."""
        self.plan = plan
        self.id_start, self.id_end = id_span
        self.raw = tuple(raw[at] for at in order)
        self.constants = tuple(_constants(message, sorted([id_span, *raw])))

    def fits(self, message: bytes) -> bool:
        """Whether `message`, which is as long as the form's own, has all of its constant bytes."""
        for start, end, constant in self.constants:  # noqa: SIM110 - on every request: all() costs twice as much
            if message[start:end] != constant:
                return False
        return True


class Forms(Generic[PlanT]):
    """Forms by the length of their messages."""

    def __init__(self) -> None:
        self._by_length: dict[int, list[Form[PlanT]]] = {}

    def find(self, message: bytes) -> Form[PlanT] | None:
        """Return the form of `message`, or None."""
        for form in self._by_length.get(len(message), ()):
            if form.fits(message):
                return form
        return None

    def keep(self, form: Form[PlanT], length: int) -> None:
        """Keep the form of a message of this length; the oldest of its length gives way."""
        if len(self._by_length) >= LENGTHS_KEPT:
            self._by_length.clear()
        forms = self._by_length.setdefault(length, [])
        forms.insert(0, form)
        del forms[FORMS_PER_LENGTH:]

    def clear(self) -> None:
        """Forget all."""
        self._by_length.clear()


def _constants(message: bytes, contents: Sequence[Span]) -> list[tuple[int, int, bytes]]:
    constants = []
    at = 0
    for start, end in contents:
        if start > at:
            constants.append((at, start, message[at:start]))
        at = max(at, end)
    if at < len(message):
        constants.append((at, len(message), message[at:]))
    return constants
