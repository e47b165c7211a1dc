"""configfs-tsm as the kernel offers it, by FUSE: a folder in which `mkdir` makes an entry, and files that behave.

As drivers/virt/coco/tsm.c: an entry's generation counts writes; reading a blob makes the report if something was
written since; without `inblob` a blob cannot be read; without a provider no entry can be made. What a provider answers
is a function of the report data, so recorded evidence can be replayed. Linux only, and who may mount: root.
"""

import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

Blobs = tuple[bytes, bytes]  # outblob, auxblob
TEXTS: Final = ("generation", "provider")
BINARIES: Final = ("inblob", "outblob", "auxblob")

_ROOT: Final = 1
_IN: Final = struct.Struct("<IIQQIIIHH")
_ATTRIBUTES: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _MKDIR, _RMDIR, _OPEN, _READ, _WRITE = 1, 2, 3, 4, 9, 11, 14, 15, 16
_RELEASE, _FLUSH, _INIT, _INTERRUPT, _BATCH_FORGET = 18, 25, 26, 36, 42
_DIRECT_IO: Final = 1
_SILENT: Final = {_FORGET, _BATCH_FORGET, _INTERRUPT}


class _RefusedError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.code = code


@dataclass
class Entry:
    """One folder made by `mkdir`."""

    name: str
    inblob: bytes = b""
    written: int = 0
    made: int = -1
    blobs: Blobs = (b"", b"")


@dataclass
class TsmFilesystem:
    """What the kernel would be: set `provider` None for a kernel without a TEE, `has_auxblob` False for TDX."""

    report: Callable[[bytes], Blobs]
    provider: str | None = "sev_guest"
    has_auxblob: bool = True
    on_read: Callable[["TsmFilesystem", Entry, str], None] = lambda *_: None
    """Called before each read of an attribute: the place for another writer, or an error."""
    entries: dict[int, Entry] = field(default_factory=dict)
    peak: int = 0
    _next: int = 2

    @contextmanager
    def mounted(self, folder: Path) -> Iterator[Path]:
        """Serve `folder`; raises `PermissionError` or `FileNotFoundError` where FUSE cannot be had."""
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        library = ctypes.CDLL(None, use_errno=True)
        options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
        if library.mount(b"tsm", os.fsencode(folder), b"fuse", 0, options) != 0:
            os.close(device)
            raise PermissionError(ctypes.get_errno(), "mount")
        server = threading.Thread(target=self._serve, args=(device,))
        server.start()
        try:
            yield folder
        finally:
            library.umount2(os.fsencode(folder), 2)  # MNT_DETACH; the server's next read then says ENODEV
            server.join()
            os.close(device)

    def write(self, entry: Entry, data: bytes) -> None:
        """What a writer of `inblob` does; tests are the other writer."""
        if len(data) > 64:
            raise _RefusedError(errno.EINVAL)
        entry.inblob = data
        entry.written += 1

    def _serve(self, device: int) -> None:
        while True:
            try:
                message = os.read(device, 1 << 18)
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                return  # ENODEV: unmounted
            _, code, unique, node, *_ = _IN.unpack_from(message)
            if code in _SILENT:
                continue
            try:
                answer, failure = self._answer(code, node, message[_IN.size :]), 0
            except _RefusedError as refusal:
                answer, failure = b"", -refusal.code
            os.write(device, struct.pack("<IiQ", 16 + len(answer), failure, unique) + answer)

    def _answer(self, code: int, node: int, body: bytes) -> bytes:
        handlers: dict[int, Callable[[int, bytes], bytes]] = {
            _INIT: lambda *_: struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 8, 8, 1 << 16, 1, 0, 0, 0),
            _LOOKUP: self._lookup,
            _GETATTR: lambda node, _: struct.pack("<QII", 0, 0, 0) + self._attributes(node),
            _SETATTR: lambda node, _: struct.pack("<QII", 0, 0, 0) + self._attributes(node),
            _MKDIR: self._mkdir,
            _RMDIR: self._rmdir,
            _OPEN: lambda *_: struct.pack("<QIi", 0, _DIRECT_IO, 0),
            _READ: self._read,
            _WRITE: self._write,
            _RELEASE: lambda *_: b"",
            _FLUSH: lambda *_: b"",
        }
        if code not in handlers:
            raise _RefusedError(errno.ENOSYS)
        return handlers[code](node, body)

    def _names(self) -> tuple[str, ...]:
        return tuple(name for name in TEXTS + BINARIES if name != "auxblob" or self.has_auxblob)

    def _place(self, node: int) -> tuple[Entry, str | None]:
        """The entry of `node`, and which attribute of it."""
        number, attribute = divmod(node, 16)
        if number not in self.entries:
            raise _RefusedError(errno.ENOENT)
        return self.entries[number], None if attribute == 0 else (TEXTS + BINARIES)[attribute - 1]

    def _attributes(self, node: int) -> bytes:
        mode, links = stat.S_IFDIR | 0o755, 2
        if node != _ROOT:
            name = self._place(node)[1]
            if name is not None:
                mode, links = stat.S_IFREG | (0o200 if name == "inblob" else 0o400), 1
        return _ATTRIBUTES.pack(node, 0, 0, 0, 0, 0, 0, 0, 0, mode, links, os.getuid(), os.getgid(), 0, 4096, 0)

    def _found(self, node: int) -> bytes:
        return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self._attributes(node)

    def _lookup(self, node: int, body: bytes) -> bytes:
        name = body.rstrip(b"\0").decode()
        if node == _ROOT:
            for number, entry in self.entries.items():
                if entry.name == name:
                    return self._found(number * 16)
        elif self._place(node)[1] is None and name in self._names():
            return self._found(node + 1 + (TEXTS + BINARIES).index(name))
        raise _RefusedError(errno.ENOENT)

    def _mkdir(self, node: int, body: bytes) -> bytes:
        if self.provider is None:
            raise _RefusedError(errno.ENXIO)
        if node != _ROOT:
            raise _RefusedError(errno.EPERM)
        number = self._next
        self._next += 1
        self.entries[number] = Entry(body[8:].rstrip(b"\0").decode())
        self.peak = max(self.peak, len(self.entries))
        return self._found(number * 16)

    def _rmdir(self, _: int, body: bytes) -> bytes:
        name = body.rstrip(b"\0").decode()
        for number, entry in self.entries.items():
            if entry.name == name:
                del self.entries[number]
                return b""
        raise _RefusedError(errno.ENOENT)

    def _read(self, node: int, body: bytes) -> bytes:
        entry, name = self._place(node)
        _, offset, size = struct.unpack_from("<QQI", body)
        if name is None or name == "inblob":
            raise _RefusedError(errno.EACCES)
        if offset == 0:
            self.on_read(self, entry, name)
        return self._content(entry, name)[offset : offset + size]

    def _content(self, entry: Entry, name: str) -> bytes:
        if name in TEXTS:
            return f"{entry.written if name == 'generation' else self.provider}\n".encode()
        if not entry.inblob:
            raise _RefusedError(errno.EINVAL)
        if entry.made != entry.written:
            entry.blobs = self.report(entry.inblob)
            entry.made = entry.written
        return entry.blobs[0 if name == "outblob" else 1]

    def _write(self, node: int, body: bytes) -> bytes:
        entry, name = self._place(node)
        if name != "inblob":
            raise _RefusedError(errno.EACCES)
        size = struct.unpack_from("<QQI", body)[2]
        self.write(entry, body[40 : 40 + size])
        return struct.pack("<II", size, 0)


def fail(code: int) -> None:
    """Answer the system call under way with the error `code`."""
    raise _RefusedError(code)
