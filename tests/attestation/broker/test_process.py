"""The broker as a process: its end, kill -9 at any moment, and what its memory keeps."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hermetic import compiled
from hermetic.attestation.admin_client import AdminClient, ModelKeyFacts
from hermetic.attestation.key_memory import probe
from hermetic.enclave.memory_scan import forms, scan
from hermetic.errors import BrokerUnreachableError
from tests.attestation.broker.independent_guest import IndependentGuest, hermetic_claims
from tests.attestation.broker.world import ORIGIN, World


class Served:
    """`hermetic broker serve` with its ports, once it answers."""

    def __init__(self, world: World, code: str | None = None) -> None:
        program = ["-m", "hermetic"] if code is None else ["-c", code]
        command = [sys.executable, *program, "broker", "serve", "--config", str(world.folder / "broker.toml"), "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.facts: dict[str, Any] = json.loads("".join(iter(self._line, "}\n")) + "}")
        self.url = f"https://localhost:{self.facts['public']}"
        self.admin_url = f"https://localhost:{self.facts['admin']}"

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read())
        return line


@contextlib.contextmanager
def served(world: World, code: str | None = None) -> Iterator[Served]:
    broker = Served(world, code)
    try:
        yield broker
    finally:
        broker.process.kill()
        broker.process.wait(60)
        for stream in (broker.process.stdout, broker.process.stderr):
            if stream is not None:
                stream.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root looks at the memory of a locked process")
def test_the_broker_runs_what_was_compiled_of_this_source(world: World) -> None:
    """And the source, where nothing was, or what starts it is not our command."""
    for code, wanted in ((None, not compiled.BROKER.why_not()), ("from hermetic.cli import main; main()", False)):
        with served(world, code) as broker:
            maps = Path(f"/proc/{broker.process.pid}/maps").read_text()
        assert ("__mypyc" in maps) == wanted, code


def operator(world: World, broker: Served) -> AdminClient:
    world.clock.now = datetime.now(UTC)  # the broker's own clock is the machine's
    return AdminClient(broker.admin_url, world.context("operator"), world.signer())


def guest_http(world: World, broker: Served) -> httpx.Client:
    return httpx.Client(base_url=broker.url, verify=world.context("host"), trust_env=False, timeout=60)


def operator_http(world: World, broker: Served) -> httpx.Client:
    return httpx.Client(base_url=broker.admin_url, verify=world.context("operator"), trust_env=False, timeout=60)


def model(name: str, digest: bytes = bytes(32)) -> ModelKeyFacts:
    return ModelKeyFacts(name, 1, digest, "Publisher")


def test_it_serves_until_sigterm(world: World) -> None:
    key, digest = os.urandom(32), os.urandom(32)
    with served(world) as broker:
        assert broker.facts["profile"] == "demo"
        with operator(world, broker) as client:
            client.upload("kbs:///models/key/p", key, model("p", digest))
        with guest_http(world, broker) as http:
            guest = IndependentGuest(http)
            guest.handshake(hermetic_claims(digest))
            assert guest.open(guest.resource("models/key/p")) == key
        broker.process.send_signal(signal.SIGTERM)
        assert broker.process.wait(60) == 0
    assert world.outcomes("broker.release") == ["released"]


def released(world: World, broker: Served, key: bytes) -> None:
    """Through upload, wrapping, unwrapping and JWE, for both kinds of key."""
    digest = os.urandom(32)
    with operator(world, broker) as client:
        client.upload("kbs:///models/key/wiped", key, model("wiped", digest))
    for kind in ("P-256", "RSA"):
        with guest_http(world, broker) as http:
            guest = IndependentGuest(http, key_kind=kind)
            guest.handshake(hermetic_claims(digest))
            assert guest.open(guest.resource("models/key/wiped")) == key


def found_in(broker: Served, key: bytes) -> int:
    try:
        found = scan(broker.process.pid, forms("key", key) | {"control": ORIGIN.encode()})
    except PermissionError:
        pytest.skip("needs the right to read another process's memory")
    assert found.count("control") > 0
    return sum(hit.canary != "control" for hit in found.hits)


def test_a_released_key_is_not_in_the_brokers_memory(world: World) -> None:
    """What was mapped is wiped, what a library copied and freed is overwritten by the allocator."""
    key = os.urandom(32)
    with served(world) as broker:
        if broker.facts["zeroing"] != "enforced":
            pytest.skip("this host's allocator does not overwrite freed memory")
        released(world, broker, key)
        assert found_in(broker, key) == 0


FORGETS_TO_WIPE = """
from hermetic.attestation import key_memory
kept = []
key_memory.KeyMemory.wipe = lambda self: kept.append(self)
{more}
from hermetic.cli import main
main()
"""


NO_SECRET_MEMORY = """
def refuse(size):
    raise OSError("not here")
key_memory._secret = refuse
"""


@pytest.mark.parametrize(("more", "found"), [(NO_SECRET_MEMORY, 2), ("", 0)], ids=["locked memory", "secret memory"])
def test_the_scan_would_find_a_key_that_is_not_wiped(world: World, more: str, found: int) -> None:
    """In locked memory. In secret memory nobody finds it, wiped or not: there the wipe looks for itself."""
    if not more and probe() != "secret":
        pytest.skip("this host has no secret memory")
    key = os.urandom(32)
    with served(world, FORGETS_TO_WIPE.format(more=more)) as broker:
        released(world, broker, key)
        assert found_in(broker, key) == found


def test_no_key_that_wraps_others_is_in_the_brokers_memory(world: World) -> None:
    """All the time that it runs: the key-encryption key, and what is derived from it, lie where nobody reads."""
    if probe() != "secret":
        pytest.skip("this host has no secret memory")
    kek = os.urandom(32)
    (world.folder / "elsewhere" / "kek").write_bytes(kek)
    with served(world) as broker:
        released(world, broker, os.urandom(32))
        assert found_in(broker, kek) == 0
        assert found_in(broker, HKDF(SHA256(), 32, None, b"hermetic-wrapped-key/2 wrap").derive(kek)) == 0


def test_it_leaves_no_core_dump(world: World) -> None:
    with served(world) as broker:
        limits = Path(f"/proc/{broker.process.pid}/limits").read_text()
        assert re.search(r"Max core file size +1 +1", limits)


KILLED_BETWEEN = """
import os, sys
from hermetic.attestation.log import Log
append = Log.append_entries
def killed_after(self, entries):
    indexes = append(self, entries)
    if any(b'"kind":"{kind}"' in entry for entry in entries):
        os.kill(os.getpid(), 9)
    return indexes
Log.append_entries = killed_after
from hermetic.cli import main
main()
"""


@pytest.mark.parametrize("kind", ["broker.floor", "broker.upload"])
def test_killed_between_record_and_act_no_decision_is_lost(world: World, kind: str) -> None:
    with served(world, KILLED_BETWEEN.format(kind=kind)) as broker:
        with operator(world, broker) as client:
            acts = {"broker.floor": lambda: client.retire("m", 7)}
            upload = lambda: client.upload("kbs:///models/key/k", bytes(range(32)), model("k"))  # noqa: E731
            with pytest.raises(BrokerUnreachableError):
                acts.get(kind, upload)()
        assert broker.process.wait(60) == -signal.SIGKILL
    assert world.records()[-1].kind == kind
    with served(world) as broker, operator(world, broker) as client:
        assert client.floors() == ({"m": 7} if kind == "broker.floor" else {})
        assert client.stored_keys() == []
        client.upload("kbs:///models/key/k", bytes(range(32)), model("k"))  # nothing half there


def test_killed_after_a_spent_token_it_stays_spent(world: World) -> None:
    world.clock.now = datetime.now(UTC)
    headers = {"authorization": f"Bearer {world.signer().mint()}"}

    def ask(code: str | None) -> str:
        with served(world, code) as broker, operator_http(world, broker) as http:
            return http.get("/hermetic/v1/keys", headers=headers).text

    with pytest.raises(httpx.TransportError):
        ask(KILLED_BETWEEN.format(kind="broker.admin"))
    assert "used one" in ask(None)


def test_killed_between_release_record_and_key_the_record_stays(world: World) -> None:
    digest = os.urandom(32)
    with served(world, KILLED_BETWEEN.format(kind="broker.release")) as broker:
        with operator(world, broker) as client:
            client.upload("kbs:///models/key/r", os.urandom(32), model("r", digest))
        with guest_http(world, broker) as http:
            guest = IndependentGuest(http)
            guest.handshake(hermetic_claims(digest))
            with pytest.raises(httpx.TransportError):
                guest.resource("models/key/r")
        assert broker.process.wait(60) == -signal.SIGKILL
    assert world.outcomes("broker.release") == ["released"]
