"""The states of a model version, and when the next try is due."""

from typing import Any

import pytest

from hermetic.enclave.manifest import Manifest
from hermetic.errors import ConfigurationError, NotFoundError
from hermetic.server.config import Model
from hermetic.server.repository import RESTART_DELAYS_S, Repository, Slot
from tests.enclave.sealed_by_hand import manifest_of


def slot(**changes: Any) -> Slot:
    manifest = Manifest.model_validate(manifest_of([("model.onnx", b"g")], **changes), strict=False)
    return Slot(Model.model_validate({"path": "/m.sealed"}), manifest)


def test_the_delay_before_a_restart_grows_with_each_loss_and_stays_at_its_end() -> None:
    one = slot()
    delays = []
    for _ in range(len(RESTART_DELAYS_S) + 2):
        one.lost(100.0, "gone")
        assert one.restart_at is not None
        delays.append(one.restart_at - 100.0)
    assert delays == [*RESTART_DELAYS_S, RESTART_DELAYS_S[-1], RESTART_DELAYS_S[-1]]


def test_an_operators_unload_ends_the_restarts_and_forgets_the_losses() -> None:
    one = slot()
    one.lost(0.0, "gone")
    one.unavailable("unloaded")
    assert (one.restart_at, one.state, one.reason) == (None, "UNAVAILABLE", "unloaded")
    one.lost(0.0, "gone")
    assert one.restart_at == RESTART_DELAYS_S[0]


def test_a_load_that_has_begun_is_no_longer_due() -> None:
    one = slot()
    one.lost(0.0, "gone")
    one.loading()
    assert one.restart_at is None


def test_a_workers_words_cannot_make_a_line_of_their_own() -> None:
    one = slot()
    one.unavailable("broken\nmodel x version 1: READY\x1b[2J")
    assert "\n" not in one.reason
    assert "\x1b" not in one.reason


def test_each_version_stands_once() -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        Repository([slot(), slot()])


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="'other'"):
        Repository([slot()]).versions("other")
