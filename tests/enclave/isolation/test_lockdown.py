"""What a locked process can and cannot do, tried from inside; with no lock-down every attempt succeeds."""

import os
from collections.abc import Iterator

import pytest

from hermetic.enclave.isolation.properties import (
    FRONT_END_PROPERTIES,
    OWN_UID,
    SECCOMP,
    WORKER_PROPERTIES,
)
from tests.enclave.isolation.escapes import ATTEMPTS, OPTIONAL
from tests.enclave.isolation.room import Template, template

USER = 1001
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
ESCAPES = sorted(set(ATTEMPTS) - {"accept"})


@pytest.fixture(scope="module")
def room() -> Iterator[Template]:
    with template() as process:
        yield process


@AS_ROOT
@pytest.mark.parametrize("name", ESCAPES)
def test_with_nothing_every_attempt_succeeds(room: Template, name: str) -> None:
    got = room.attempt(name, layers=None)
    if name in OPTIONAL and got.outcome == "refused":
        pytest.skip(f"this kernel does not let anyone: {got.detail}")
    assert got.outcome == "escaped", got


@pytest.mark.parametrize("name", ESCAPES)
def test_a_locked_worker_can_do_none_of_it(room: Template, name: str) -> None:
    got = room.attempt(name, without=[])
    assert got.stopped, got
    assert set(got.report.properties) == set(WORKER_PROPERTIES)
    assert got.report.waived == ()


@AS_ROOT
@pytest.mark.parametrize("name", ESCAPES)
def test_nor_can_one_that_an_ordinary_user_started(room: Template, name: str) -> None:
    got = room.attempt(name, without=[], uid=USER)
    assert got.stopped, got
    assert set(got.report.properties) == set(WORKER_PROPERTIES)


@AS_ROOT
@pytest.mark.parametrize("name", ESCAPES)
def test_nor_one_in_a_container_that_may_not_make_namespaces(room: Template, name: str) -> None:
    got = room.attempt(name, without=[], no_namespaces=True)
    assert got.stopped, got
    assert got.report.properties["no-files"] == ("empty-root", "landlock-files", "seccomp")  # by chroot
    assert got.report.properties["no-network"] == ("seccomp",)
    assert any("network-namespace (unshare: Operation not permitted)" in text for text in got.report.warnings)


@AS_ROOT
@pytest.mark.parametrize("name", ESCAPES)
def test_nor_an_ordinary_users_in_such_a_container(room: Template, name: str) -> None:
    got = room.attempt(name, without=[], no_namespaces=True, uid=USER)
    assert got.stopped, got
    assert got.report.properties["no-files"] == ("landlock-files", "seccomp")
    assert got.report.properties["no-reach"] == ("landlock-scopes", "seccomp")


@AS_ROOT
def test_root_without_a_uid_of_its_own_has_no_bound_on_threads(room: Template) -> None:
    got = room.attempt("many_threads", without=[OWN_UID])
    assert got.outcome == "broken"
    assert "bounded-threads" in got.report_json


@pytest.mark.parametrize("name", ESCAPES)
def test_a_locked_front_end_can_do_none_of_it(room: Template, name: str) -> None:
    got = room.attempt(name, kind="front-end", without=[])
    assert got.stopped, got
    assert set(got.report.properties) == set(FRONT_END_PROPERTIES)


@pytest.mark.parametrize("name", ["read_file", "connect_tcp", "fork", "execute", "signal_victim"])
def test_nor_can_a_thread_that_it_had_before(room: Template, name: str) -> None:
    got = room.attempt(name, kind="front-end", without=[], thread=True)
    assert got.stopped, got


def test_a_locked_front_end_still_accepts(room: Template) -> None:
    assert room.attempt("accept", kind="front-end", without=[]).outcome == "escaped"


def test_executable_memory_is_what_the_torch_profile_allows(room: Template) -> None:
    name = "writable_and_executable_memory"
    assert room.attempt(name, without=[], profile="torch-cpu").outcome == "escaped"
    assert room.attempt("execute_memory", without=[], profile="torch-cpu").stopped


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("network-namespace", "connect_tcp"),
        ("network-namespace", "send_udp"),
        ("network-namespace", "connect_abstract"),
        ("empty-root", "read_file"),
        ("empty-root", "stat_file"),
        ("empty-root", "victims_memory_file"),
        ("landlock-files", "read_file"),
        ("landlock-files", "list_folder"),
        ("landlock-files", "execute"),
        ("landlock-scopes", "signal_victim"),
        ("landlock-scopes", "ptrace"),
        ("own-uid", "signal_victim"),
        ("own-uid", "victims_memory_file"),
        ("own-uid", "mount"),
        ("rlimit-memory", "much_memory"),
        ("rlimit-memory", "much_memory_in_pieces"),
        *((SECCOMP, name) for name in ("read_file", "connect_tcp", "fork", "execute", "ptrace", "make_memfd")),
    ],
)
@AS_ROOT
def test_a_layer_alone_stops_what_it_is_there_for(room: Template, layer: str, name: str) -> None:
    got = room.attempt(name, layers=[layer], waive=True)
    assert got.stopped, got


@AS_ROOT
def test_threads_are_bounded_by_their_limit_under_an_own_uid(room: Template) -> None:
    assert room.attempt("many_threads", layers=["own-uid"], waive=True).outcome == "escaped"
    assert room.attempt("many_threads", layers=["own-uid", "rlimit-threads"], waive=True).stopped


@AS_ROOT
def test_a_property_without_a_layer_refuses_the_lock_down(room: Template) -> None:
    got = room.attempt("read_file", without=[SECCOMP])
    assert got.outcome == "broken"
    assert "no-exec" in got.report_json
    assert room.attempt("read_file", without=[SECCOMP], waive=True).report.waived == ("no-exec",)
