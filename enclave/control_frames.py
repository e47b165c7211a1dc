"""What a control frame is: a header and a JSON body, checked field by field. The frames themselves are elsewhere.

    control  u8 kind | u8 version (1) | u16 0 | u32 body length | body: JSON, UTF-8        (integers little-endian)

One SEQPACKET datagram is one frame. Each border has a file of the kinds that cross it: messages.py here for a worker's,
server/messages.py and server/shared_messages.py for a front end's. Both sides treat the other as hostile: whatever does
not fit is a `BorderError`. There is no pickle, and nothing here does I/O.
"""

import struct
from collections.abc import Sequence
from typing import ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from hermetic.errors import BorderError

CONTROL_FRAME_LIMIT: Final = 64 * 1024  # bytes
VERSION: Final = 1
PROBLEMS_LIMIT: Final = 3  # faults of a frame that are named
PROBLEMS_TEXT_LIMIT: Final = 1024  # characters of them
_CONTROL: Final = struct.Struct("<BBHI")


class Frame(BaseModel):
    """A control message: immutable, unknown fields refused, bytes as base64."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        ser_json_bytes="base64",
        val_json_bytes="base64",
        ser_json_inf_nan="null",
    )
    kind: ClassVar[int]

    def encode(self) -> bytes:
        """Return the frame; `BorderError` where it is larger than `CONTROL_FRAME_LIMIT`."""
        body = self.model_dump_json().encode()
        if _CONTROL.size + len(body) > CONTROL_FRAME_LIMIT:
            raise BorderError(
                f"control frame: wanted at most {CONTROL_FRAME_LIMIT} bytes, got {_CONTROL.size + len(body)}"
            )
        return _CONTROL.pack(self.kind, VERSION, 0, len(body)) + body

    @classmethod
    def decode(cls, frame: bytes) -> Self:
        """Return the message in `frame`; `BorderError` where it is another kind, too long, or does not validate."""
        decoded = decode_control(frame, (cls,))
        if not isinstance(decoded, cls):  # decode_control has checked the kind; this tells the type checker
            raise BorderError(f"control frame: wanted {cls.__name__}, got {type(decoded).__name__}")
        return decoded


def decode_control(frame: bytes, allowed: Sequence[type[Frame]]) -> Frame:
    """Return the message in `frame`, which must be one of the `allowed` kinds; else `BorderError`."""
    if not _CONTROL.size <= len(frame) <= CONTROL_FRAME_LIMIT:
        raise BorderError(f"control frame: wanted {_CONTROL.size} to {CONTROL_FRAME_LIMIT} bytes, got {len(frame)}")
    kind, version, reserved, length = _CONTROL.unpack_from(frame)
    if (version, reserved, length) != (VERSION, 0, len(frame) - _CONTROL.size):
        wanted = len(frame) - _CONTROL.size
        raise BorderError(
            f"control frame: wanted version {VERSION} and {wanted} bytes of body, got {version} and {length}"
        )
    for message in allowed:
        if message.kind == kind:
            try:
                return message.model_validate_json(frame[_CONTROL.size :])
            except ValidationError as error:
                problems = str(error.errors(include_url=False, include_input=False)[:PROBLEMS_LIMIT])
                raise BorderError(
                    f"{message.__name__} frame: {error.error_count()} fields do not validate: "
                    f"{problems[:PROBLEMS_TEXT_LIMIT]}"
                ) from None
    raise BorderError(f"control frame: wanted one of {[m.__name__ for m in allowed]}, got kind {kind:#x}")
