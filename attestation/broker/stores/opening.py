"""The line of the configuration that says which KEK, and the KEK out of it, probed."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from hermetic.attestation.broker.stores import local_kek
from hermetic.attestation.broker.stores.kek import Kek, KekRing, probe
from hermetic.attestation.broker.stores.one_trial import OneTrial
from hermetic.attestation.broker.stores.openbao.kek import open_openbao_kek
from hermetic.attestation.broker.stores.pkcs11.kek import open_pkcs11_kek
from hermetic.errors import ConfigurationError

_OPENERS: Final[dict[str, Callable[[str, Path, Path | None], Kek]]] = {
    **dict.fromkeys(local_kek.KINDS, local_kek.open_local_kek),
    "pkcs11": lambda line, _, credentials: open_pkcs11_kek(line, credentials),
    "openbao": lambda line, _, credentials: open_openbao_kek(line, credentials),
}


def open_keks(line: str, former: Sequence[str], store: Path, credentials: Path | None) -> KekRing:
    """Open the KEK of `line` and `former` ones for the folder `store`, and make a round trip with each.

    `credentials` is systemd's folder, None without one. Raises `ConfigurationError` or `KeyStoreError`.
    """
    with contextlib.ExitStack() as undo:
        opened: list[Kek] = []
        for one in (line, *former):
            kek = OneTrial(_open(one, store, credentials))
            undo.callback(kek.close)
            if kek.identifier in (other.identifier for other in opened):
                raise ConfigurationError(f"kek, former_keks: expected each KEK once, got {kek.identifier} twice")
            probe(kek)
            opened.append(kek)
        undo.pop_all()
        return KekRing(opened[0], opened[1:])


def is_local(line: str) -> bool:
    """Whether the KEK of a configuration's line is in this process, so that using it waits for nothing."""
    return line.partition(":")[0] in local_kek.KINDS


def _open(line: str, store: Path, credentials: Path | None) -> Kek:
    opener = _OPENERS.get(line.partition(":")[0])
    if opener is None:
        known = ", ".join(f"{kind}:" for kind in _OPENERS)
        raise ConfigurationError(f"kek: expected one of {known} and what follows it, got {line[:200]!r}")
    return opener(line, store, credentials)
