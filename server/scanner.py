"""Cuts a serialised ModelInferRequest into its header and its raw tensors, without copying the tensors. Pure.

protobuf lets fields of a message come in any order, so what remains when every `raw_input_contents` (field 7) is cut
out is itself a ModelInferRequest that differs in that field alone; protobuf parses it as usual. `id` (field 3) is cut
out too, because without it the header is the same for every request of one client and can be looked up. On anything
unusual (a tag or length that protobuf would have written differently, a wire type other than length-delimited, a
repeated id) the scanner returns None, and protobuf parses the whole: it decides what is valid, never we.
Source: protobuf encoding, https://protobuf.dev/programming-guides/encoding/.
"""

from typing import Final, NamedTuple

_ID: Final = 0x1A  # field 3, length-delimited
_RAW: Final = 0x3A  # field 7, length-delimited
_KNOWN: Final = frozenset({0x0A, 0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A})  # fields 1 to 7, length-delimited
_CONTINUED: Final = 0x80  # a varint goes on in the next byte
FIELDS_LIMIT: Final = 1024  # fields that are looked at before protobuf takes over


class Pieces(NamedTuple):
    """A request cut up: `header` without id and tensors, the bytes of `id`, the tensors as views of the message.

    The spans say where id and tensors lie in it: (start, end).
    """

    header: bytes
    id: bytes
    raw: list[memoryview]
    id_span: tuple[int, int]
    raw_spans: list[tuple[int, int]]


def cut(message: bytes) -> Pieces | None:  # noqa: C901, PLR0912 - one pass, on every request
    """Return the pieces of `message`, or None where protobuf has to look at the whole."""
    view = memoryview(message)
    size = len(message)
    raw: list[tuple[int, int]] = []
    header: list[memoryview] = []
    identifier = (0, 0)
    has_id = False
    at = kept = 0  # message[kept:at] belongs to the header
    for _ in range(FIELDS_LIMIT):
        if at >= size:
            break
        tag = message[at]
        if tag not in _KNOWN or at + 1 >= size:
            return None
        length = message[at + 1]
        start = at + 2
        if length >= _CONTINUED:
            decoded = _long_length(message, at + 1)
            if decoded is None:
                return None
            length, start = decoded
        end = start + length
        if end > size:
            return None
        if tag == _RAW or tag == _ID:  # noqa: PLR1714, SIM109 - quicker than a set
            if kept != at:
                header.append(view[kept:at])
            kept = end
            if tag == _RAW:
                raw.append((start, end))
            elif has_id:
                return None
            else:
                identifier, has_id = (start, end), True
        at = end
    if at != size:
        return None
    if kept != size:
        header.append(view[kept:size])
    tensors = [view[start:end] for start, end in raw]
    return Pieces(b"".join(header), message[identifier[0] : identifier[1]], tensors, identifier, raw)


def _long_length(message: bytes, at: int) -> tuple[int, int] | None:
    """Return a length of two to five bytes and where it ends; None where protobuf would not have written it so."""
    value = shift = 0
    for index in range(at, min(at + 5, len(message))):
        byte = message[index]
        value |= (byte & 0x7F) << shift
        if byte < _CONTINUED:
            return (value, index + 1) if byte else None
        shift += 7
    return None
