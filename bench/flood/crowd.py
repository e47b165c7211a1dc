"""What do ten thousand idle connections cost a client that behaves, and the server? Set up, held, let go.

They come from several processes and are those of `CALLERS` identities, because one alone may neither make them so fast
nor have so many. Each makes a handshake of its own and asks nothing. The good client is measured alone, while they
come, beside them, and after they have gone.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import UniformResourceIdentifier
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.bench.child import Child
from hermetic.bench.flood.measure import (
    GOOD,
    INTERVAL_S,
    MIB,
    SETTLE_S,
    Latency,
    door_of,
    front_end_of,
    latency,
    server,
)
from hermetic.bench.flood.wire import Door
from hermetic.bench.models import mlp_rows
from hermetic.bench.process_memory import resident
from hermetic.bench.traffic import METHOD, question
from hermetic.demo.stage import Served
from hermetic.provision.authority import Leaf, new_key
from hermetic.provision.layout import load_authority

CLIENTS: Final = 4  # processes
CALLERS: Final = 40  # identities
SPARE: Final = 256  # connections that the server may have beside the crowd
KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Crowd:
    """Connections that were wanted, made, and still open after they were held; what they cost.

    `setup_s` seconds for all handshakes; memory in MiB, of the front end.
    """

    wanted: int
    made: int
    held: int
    setup_s: float
    before: Latency
    coming: Latency
    beside: Latency
    after: Latency
    memory_before_mib: float
    memory_held_mib: float
    memory_after_mib: float

    @property
    def ratio(self) -> float:
        """The good client's p99 beside the crowd, over that before it."""
        return self.beside.p99_ms / self.before.p99_ms

    @property
    def kib_each(self) -> float:
        """Memory of the front end for each connection, in KiB."""
        return (self.memory_held_mib - self.memory_before_mib) * KIB / max(1, self.made)


def measure_crowd(count: int, seconds: float) -> Crowd:
    """Hold `count` connections; each phase of the good client lasts `seconds`."""
    with server(connections=count + SPARE) as (served, _):
        return _crowd(served, count, seconds)


def document(crowd: Crowd) -> dict[str, Any]:
    """Return what is written as JSON."""
    return {**asdict(crowd), "p99_ratio": round(crowd.ratio, 2), "kib_each": round(crowd.kib_each, 1)}


def _crowd(served: Served, count: int, seconds: float) -> Crowd:
    front_end = front_end_of(served)
    before = _ask(served, seconds)
    memory = [_memory(front_end)]
    with _clients(served, count) as clients:
        start = time.monotonic()
        coming = _ask(served, seconds)
        made = [client.hear() for client in clients]
        time.sleep(SETTLE_S)
        beside = _ask(served, seconds)
        memory.append(_memory(front_end))
        for client in clients:
            client.tell({})
        held = sum(client.hear()["held"] for client in clients)
    time.sleep(SETTLE_S)
    after = _ask(served, seconds)
    memory.append(_memory(front_end))
    return Crowd(
        count, sum(one["made"] for one in made), held, round(max(one["ended"] for one in made) - start, 1),
        before, coming, beside, after,
        *memory,
    )  # fmt: skip


@contextmanager
def _clients(served: Served, count: int) -> Iterator[list[Child]]:
    """Give the processes that make the connections; each begins at once."""
    with tempfile.TemporaryDirectory(prefix="hermetic-crowd-") as folder, ExitStack() as stack:
        doors = [_door_of_caller(served, Path(folder), number) for number in range(CALLERS)]
        yield [
            stack.enter_context(Child("flood.crowd_client", {"doors": doors[at::CLIENTS], "count": share}))
            for at, share in enumerate(_shares(count, CLIENTS))
        ]


def _door_of_caller(served: Served, folder: Path, number: int) -> Door:
    """Return how one more caller enters, who is certified like any; no rule lets it ask anything."""
    authority = load_authority(served.installation.folder / "authority", "clients-ca")
    key, stem = new_key(), folder / f"caller-{number}"
    name = UniformResourceIdentifier(f"spiffe://hermetic.demo/crowd/{number}")
    leaf = authority.issue(Leaf(stem.name, ExtendedKeyUsageOID.CLIENT_AUTH, [name]), key.public_key())
    stem.with_suffix(".pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    stem.with_suffix(".key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    own = door_of(served, "client")
    return own._replace(certificate=f"{stem}.pem", key=f"{stem}.key")


def _shares(count: int, parts: int) -> list[int]:
    return [count * (at + 1) // parts - count * at // parts for at in range(parts)]


def _ask(served: Served, seconds: float) -> Latency:
    """Return what the good client sees in so many seconds from when it is connected."""
    start = time.monotonic() + 1.0  # it is connected by then
    job = {
        "door": door_of(served, "client"), "method": METHOD, "interval_s": INTERVAL_S, "end": start + seconds,
        "request": question(GOOD, mlp_rows(1), ()).request.hex(),
    }  # fmt: skip
    with Child("flood.good_client", job) as client:
        client.hear()
        start, heard = time.monotonic(), client.hear()
    return latency(heard["samples"], start, start + seconds)


def _memory(pid: int) -> float:
    return resident(pid).now / MIB
