"""The suite and the claims fit together; what other hosts and profiles lose is said, and nothing gets through there."""

import os
from collections.abc import Iterator

import pytest

from hermetic.enclave.isolation.attempts import ATTEMPTS, stopped_by
from hermetic.enclave.isolation.layers import EMPTY_ROOT, LANDLOCK_FILES, LAYERS, OWN_UID, SECCOMP
from hermetic.enclave.isolation.profiles import PROFILES
from hermetic.enclave.isolation.properties import FRONT_END_PROPERTIES, WORKER_PROPERTIES
from tests.enclave.isolation import locked, page
from tests.enclave.isolation.matrix import Prepared, prepared
from tests.enclave.standin_cuda import worker as standin

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
ON_GPU = [AS_ROOT, pytest.mark.skipif(not standin.has_compiler(), reason="needs a C compiler, for its driver")]
PLACES = [
    ("user", "torch-cpu"),
    pytest.param("root", "torch-cpu", marks=AS_ROOT),
    pytest.param("root", "onnx-cuda", marks=ON_GPU),
    *(
        pytest.param(host, profile, marks=AS_ROOT)
        for host in ("container", "user-container")
        for profile in ("onnx-cpu", "front-end")
    ),
]


@pytest.fixture(scope="module")
def worker() -> Iterator[Prepared]:
    with prepared("root", "onnx-cpu") as process:
        yield process


@pytest.fixture(scope="module")
def front_end() -> Iterator[Prepared]:
    with prepared("root", "front-end") as process:
        yield process


def test_there_is_one_function_for_each_attempt() -> None:
    assert set(locked.ATTEMPTS) == set(ATTEMPTS)


def test_claims_name_layers_and_attempts_that_exist() -> None:
    for claim in ATTEMPTS.values():
        assert {*claim.stopped_by, *claim.if_root, *claim.if_user, *claim.may_stop} <= set(LAYERS), claim
    for profile in PROFILES.values():
        assert set(profile.without) | set(profile.gaps) <= set(LAYERS)
        assert set(profile.not_tried).union(*profile.gaps.values()) <= set(ATTEMPTS)


def test_every_attempt_on_cpus_is_claimed_to_be_stopped_but_what_the_torch_profile_allows() -> None:
    open_to = {
        name: {attempt for attempt in ATTEMPTS if attempt not in profile.not_tried and not stopped_by(attempt, profile)}
        for name, profile in PROFILES.items()
        if not profile.devices
    }
    allowed = {"executable_mapping", "executable_later", "executable_shared_later"}
    assert open_to == {"onnx-cpu": set(), "front-end": set(), "torch-cpu": allowed, "torch-native": set()}


def test_the_page_says_what_the_source_claims() -> None:
    """Without a run: a claim that changed, and a page that did not."""
    text = page.PAGE.read_text()
    for (host, name), title in page.TABLES.items():
        profile = PROFILES[name]
        for attempt, cells in page.read(text, title).items():
            claimed = stopped_by(attempt, profile, root="user" not in host)
            for layer in claimed & cells.keys():
                assert cells[layer] in ("E", "K", ""), (title, attempt, layer)
            assert (cells["all"] in ("E", "K")) == bool(claimed), (title, attempt)


@pytest.mark.parametrize(("host", "profile"), PLACES)
def test_nothing_gets_through_on_other_hosts_or_under_torch(host: str, profile: str) -> None:
    with prepared(host, profile) as parent:
        properties = FRONT_END_PROPERTIES if profile == "front-end" else WORKER_PROPERTIES
        assert set(parent.report.properties) == set(properties)
        assert parent.report.waived == ()
        outcomes = {
            attempt: parent.attempt(attempt, parent.every_layer)
            for attempt in ATTEMPTS
            if attempt not in parent.profile.not_tried
        }
        through = {attempt: got for attempt, got in outcomes.items() if not got.stopped}
        allowed = {attempt for attempt in outcomes if not stopped_by(attempt, parent.profile)}
        assert through.keys() == allowed, through
        if (host, profile) in page.TABLES and profile != "front-end":
            for attempt in page.differing(parent):
                page.check(parent, attempt)


@AS_ROOT
def test_a_container_says_what_it_lacks() -> None:
    with prepared("container", "onnx-cpu") as parent:
        assert EMPTY_ROOT in parent.held  # by chroot
        (lost,) = [lost for lost in parent.report.lost if lost.layer == "network-namespace"]
        assert lost.reason == "unshare: Operation not permitted"
    with prepared("user-container", "onnx-cpu") as parent:
        assert not {OWN_UID, EMPTY_ROOT} & set(parent.held)
        (lost,) = [lost for lost in parent.report.lost if lost.layer == EMPTY_ROOT]
        assert lost.reason == "unshare: Operation not permitted"
        assert lost.cost == "only seccomp stops stat_file, connect_unix"


@AS_ROOT
def test_the_report_says_what_bounds_memory(worker: Prepared) -> None:
    bounds = worker.report.memory_bounds
    if not worker.not_given:
        assert bounds[0] in ("cgroup v1: 64 MiB resident", "cgroup v2: 64 MiB resident")
    assert bounds[-1].startswith("rlimit: ")
    assert bounds[-1].endswith(" MiB of address space")


@AS_ROOT
def test_root_without_a_uid_of_its_own_has_no_bound_on_threads(worker: Prepared) -> None:
    got = worker.attempt("more_threads", worker.profile.layers - {OWN_UID})
    assert got.outcome == "broken"
    assert "bounded-threads (cgroup-tasks, rlimit-threads (RLIMIT_NPROC does not bind root))" in got.detail


@AS_ROOT
def test_a_property_without_a_layer_refuses_the_lock_down(worker: Prepared) -> None:
    without = worker.profile.layers - {SECCOMP}
    got = worker.attempt("open_file", without)
    assert got.outcome == "broken"
    assert "no-exec" in got.detail
    assert worker.attempt("open_file", without, waive=True).report.waived == ("no-exec", "no-network")


@AS_ROOT
def test_executable_memory_is_what_the_torch_profile_allows() -> None:
    with prepared("root", "torch-cpu") as parent:
        assert parent.attempt("executable_later", parent.every_layer).outcome == "succeeded"
        stopped = (
            "executable_shared_memory executable_by_personality executable_ipc execute_memory open_file more_memory"
        )
        for name in stopped.split():
            assert parent.attempt(name, parent.every_layer).stopped, name


@pytest.mark.parametrize("host", [pytest.param("root", marks=ON_GPU)])
def test_nor_in_a_thread_that_a_worker_on_a_gpu_had_before_seccomp(host: str) -> None:
    with prepared(host, "onnx-cuda") as parent:
        attempts = (
            "open_file own_memory parents_memory connect_tcp send_udp fork execute signal_parent mount setns keyctl"
        )
        outcomes = {name: parent.attempt(name, parent.every_layer, thread=True) for name in attempts.split()}
        assert [name for name, got in outcomes.items() if not got.stopped] == []
        # Landlock alone, which covers threads that start after it, as do uid and namespaces.
        files = frozenset({LANDLOCK_FILES})
        assert parent.attempt("open_file", files, waive=True, thread=True).outcome == "refused"


@AS_ROOT
@pytest.mark.parametrize("attempt", ["open_file", "connect_tcp", "fast_open", "fork", "execute", "signal_parent"])
def test_a_thread_that_a_front_end_had_before_can_do_no_more(front_end: Prepared, attempt: str) -> None:
    got = front_end.attempt(attempt, front_end.every_layer, thread=True)
    assert got.stopped, got


@AS_ROOT
def test_a_locked_front_end_still_accepts(front_end: Prepared) -> None:
    assert front_end.attempt("accept", front_end.every_layer).outcome == "succeeded"
