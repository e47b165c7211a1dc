"""When the broker's own parts fail: nothing is released, nobody learns why, nothing secret is printed, it lives on."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from hermetic.attestation.broker.key_store import ResourcePath
from hermetic.attestation.log import Log
from hermetic.attestation.log.record import parse_record
from hermetic.errors import BrokerUnreachableError, LogError
from tests.attestation.broker.independent_guest import IndependentGuest, hermetic_claims
from tests.attestation.broker.test_refusals import refused
from tests.attestation.broker.world import World


class FailingLog:
    """The real log's class, whose disk refuses records of one kind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind = ""
        append = Log.append_entries

        def failing(log: Log, entries: Sequence[bytes]) -> range:
            if any(parse_record(entry).kind == self.kind for entry in entries):
                raise LogError("no space left on device")
            return append(log, entries)

        monkeypatch.setattr(Log, "append_entries", failing)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingLog:
    return FailingLog(monkeypatch)


def test_no_record_no_key(world: World, disk: FailingLog) -> None:
    digest, key = os.urandom(32), os.urandom(32)
    with world.start() as broker, broker.http() as http:
        broker.upload("models/key/f", key, "f", 1, digest)
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(digest))
        disk.kind = "broker.release"
        detail = refused(guest.resource("models/key/f"), "InternalError", 500)
        assert "space" not in detail
        disk.kind = ""
        assert guest.open(guest.resource("models/key/f")) == key


def test_no_record_no_token(world: World, disk: FailingLog) -> None:
    with world.start() as broker, broker.http() as http:
        guest = IndependentGuest(http)
        guest.auth()
        disk.kind = "broker.attest"
        refused(guest.attest(), "InternalError", 500)
        disk.kind = ""
        refused(guest.attest(), "AttestationError")  # the nonce is burned all the same


@pytest.mark.parametrize("kind", ["broker.admin", "broker.upload", "broker.floor"])
def test_no_record_no_act(world: World, disk: FailingLog, kind: str) -> None:
    with world.start() as broker:
        disk.kind = kind
        with broker.operator() as operator:
            upload = partial(operator.upload_plain_secret, "kbs:///plain/secret/x", b"secret")
            act = partial(operator.retire, "f", 3) if kind == "broker.floor" else upload
            with pytest.raises(BrokerUnreachableError, match="500 InternalError"):
                act()
        disk.kind = ""
        with broker.operator() as operator:
            assert operator.floors() == {}
            assert operator.stored_keys() == []


def test_a_damaged_key_file_is_a_fault_and_no_release(world: World) -> None:
    digest = os.urandom(32)
    with world.start() as broker, broker.http() as http:
        broker.upload("models/key/d", os.urandom(32), "d", 1, digest)
        path = world.folder / "store" / "keys" / "models" / "key" / "d.key"
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(digest))
        refused(guest.resource("models/key/d"), "InternalError", 500)


def test_a_fault_of_any_kind_prints_no_local_variable(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Tracebacks with local variables, as some loggers print them, would print keys."""
    from hermetic.attestation.broker import broker as module

    def broken(secret: Any, *_: Any) -> Any:
        copied = bytes(secret).hex()
        raise ZeroDivisionError(f"a bug that saw {len(copied)} digits")

    digest, key = os.urandom(32), os.urandom(32)
    with world.start() as broker, broker.http() as http:
        broker.upload("models/key/b", key, "b", 1, digest)
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(digest))
        monkeypatch.setattr(module, "encrypt", broken)
        detail = refused(guest.resource("models/key/b"), "InternalError", 500)
        assert "bug" not in detail
        identifier = detail.removeprefix("internal error ")
    out = "".join(capfd.readouterr()) + caplog.text
    assert identifier in out
    assert "ZeroDivisionError" in out
    assert key.hex() not in out
    assert repr(key) not in out


def test_resource_paths_are_what_they_print() -> None:
    assert str(ResourcePath.parse("a/b/c")) == "a/b/c"
