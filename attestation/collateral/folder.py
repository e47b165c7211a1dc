"""A folder of collateral: imported whole, by one rename, never to an older state unless told so; loaded, watched.

The only I/O of this package. A folder is its operator's, as a configuration is: whoever can write to it can take away
what a verifier knows. What he cannot do is make it believe: every item is verified again each time it is used.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from hermetic.attestation.bounded_file import read_bounded
from hermetic.attestation.checks import Checks
from hermetic.attestation.collateral.bundle import Bundle
from hermetic.attestation.collateral.items import Item
from hermetic.attestation.collateral.kinds import MAX_BUNDLE_SIZE
from hermetic.attestation.collateral.trust import check_items
from hermetic.attestation.collateral.windows import DEFAULT, State, Windows
from hermetic.attestation.log.note import NoteVerifier
from hermetic.attestation.roots import TrustRoots
from hermetic.errors import ConfigurationError, HermeticError, VerificationError

BUNDLE: Final = "bundle"
LOCK: Final = ".lock"

_Stamp = tuple[int, int, int]  # inode, size, time of change in ns


@dataclass(frozen=True, slots=True)
class Loaded:
    """A bundle with the windows it is used under."""

    bundle: Bundle
    windows: Windows

    def trust(self, roots: TrustRoots) -> TrustRoots:
        """The trust `roots` with items and grace; raises `VerificationError` for an item nobody vouches for."""
        return self.bundle.trust(roots, self.windows.grace())

    def states(self, time: datetime) -> tuple[tuple[Item, State], ...]:
        """Each item with its state at `time`."""
        return tuple((item, self.windows.state(item, time)) for item in self.bundle.items)


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import put into a folder, and what to warn of."""

    bundle: Bundle
    replaced: int | None  # number of the bundle that was there
    out_of_time: tuple[tuple[Item, State], ...]


def import_bundle(
    data: bytes,
    folder: Path,
    signers: Sequence[NoteVerifier],
    roots: TrustRoots,
    time: datetime,
    *,
    unsafe_go_back_to_older_collateral: bool = False,
) -> Imported:
    """Put the bundle in `data` into `folder`, which is made where it is missing.

    Raises `VerificationError` naming every step that fails, `ConfigurationError` for a folder that cannot be written;
    the folder is then as it was.
    """
    bundle = Bundle.load(data, signers)
    check_items(bundle.items, roots)
    with _locked(folder):
        before = _present(folder)
        if before is not None and before.digest != bundle.digest and not unsafe_go_back_to_older_collateral:
            _demand_newer(bundle, before)
        _replace(folder / BUNDLE, data)
    states = [(item, DEFAULT.state(item, time)) for item in bundle.items]
    late = tuple(pair for pair in states if pair[1] in ("expired", "not-yet-valid"))
    return Imported(bundle, None if before is None else before.number, late)


def load_folder(path: Path, windows: Windows = DEFAULT, signers: Sequence[NoteVerifier] | None = None) -> Loaded:
    """What `path` holds; raises `ConfigurationError` where there is nothing, `VerificationError` where it is damaged.

    With `signers`, the signature is verified again; without, the import's word is taken for it.
    """
    data = read_bounded(path / BUNDLE, MAX_BUNDLE_SIZE)
    bundle = Bundle.load_without_asking_who_signed(data) if signers is None else Bundle.load(data, signers)
    return Loaded(bundle, windows)


class WatchedFolder:
    """A folder whose content is loaded again when it changes. Not thread-safe: one owner asks, now and then.

    What cannot be loaded, or is older, does not replace what is there: that ends by itself, in its own time. `problem`
    says what is wrong, and `failures` counts; both belong into metrics and logs. So whoever can write the folder cannot
    take a running reader back, and an operator who goes back restarts it.
    """

    def __init__(
        self,
        path: Path,
        roots: TrustRoots,
        windows: Windows = DEFAULT,
        signers: Sequence[NoteVerifier] | None = None,
    ) -> None:
        """Load for the first time; raises as `load_folder` and `Loaded.trust` do."""
        self._path, self._roots, self._windows, self._signers = path, roots, windows, signers
        self._stamp = _stamp(path / BUNDLE)
        self.loaded = load_folder(path, windows, signers)
        self.trust = self.loaded.trust(roots)
        self.problem: str | None = None
        self.failures = 0

    def refresh(self) -> bool:
        """Load again where the folder has changed since; whether there is something new."""
        stamp = _stamp(self._path / BUNDLE)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            loaded = load_folder(self._path, self._windows, self._signers)
            if loaded.bundle.digest != self.loaded.bundle.digest:
                _demand_newer(loaded.bundle, self.loaded.bundle)
            trusted = loaded.trust(self._roots)
        except HermeticError as error:
            self.problem = str(error)
            self.failures += 1
            return False
        self.loaded, self.trust, self.problem = loaded, trusted, None
        return True


def _demand_newer(bundle: Bundle, before: Bundle) -> None:
    checks = Checks()
    checks.demand("bundle.number", bundle.number > before.number, f"more than {before.number}", bundle.number)
    checks.demand("bundle.created", bundle.created >= before.created, f"not before {before.created}", bundle.created)
    checks.raise_failures(VerificationError)


def _present(folder: Path) -> Bundle | None:
    path = folder / BUNDLE
    if not path.exists():
        return None
    try:
        return Bundle.load_without_asking_who_signed(read_bounded(path, MAX_BUNDLE_SIZE))
    except VerificationError as error:
        raise ConfigurationError(
            f"{path}: expected the bundle that was imported before, got another: {error}"
        ) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among imports: of two at once, the older must not come last."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{folder}: expected a folder that can be written, got {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, data: bytes) -> None:
    """All of `data` under the name `path`, or what was there before, even if the machine stops in between."""
    new = path.with_suffix(".new")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from error


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
