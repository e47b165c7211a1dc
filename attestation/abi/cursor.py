"""Reading a byte string from left to right, with every length checked; used by each parser of this folder."""

from typing import Literal, Self

from hermetic.errors import InvalidRequestError


class Cursor:
    """A position in `data`; every read raises `InvalidRequestError` naming `what` when too few bytes are left."""

    def __init__(self, data: bytes, what: str, byteorder: Literal["big", "little"] = "big") -> None:
        """Start at the first byte; integers are read in `byteorder`."""
        self._data = data
        self._size = len(data)
        self._what = what
        self._byteorder = byteorder
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return self._size - self.position

    def take(self, size: int, field: str) -> bytes:
        """The next `size` bytes, called `field` in the error."""
        start = self.position
        end = start + size
        if end > self._size:
            raise InvalidRequestError(
                f"{self._what}: expected {size} bytes of {field} at offset {start}, got {self.left}"
            )
        self.position = end
        return self._data[start:end]

    def uint(self, size: int, field: str) -> int:
        """An unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size, field), self._byteorder)

    def sized(self, width: int, limit: int, field: str) -> bytes:
        """Bytes behind a length of `width` bytes (TPM2B: 2); at most `limit`."""
        size = self.uint(width, f"{field} length")
        if size > limit:
            raise InvalidRequestError(f"{self._what}: expected at most {limit} bytes of {field}, got {size}")
        return self.take(size, field)

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(self.left, "rest")

    def end(self) -> Self:
        """Raise unless everything has been read."""
        if self.left:
            raise InvalidRequestError(f"{self._what}: expected the end at offset {self.position}, got {self.left} more")
        return self


def sized(data: bytes, width: int = 2) -> bytes:
    """`data` behind its big-endian length of `width` bytes (TPM2B: 2)."""
    return len(data).to_bytes(width, "big") + data
