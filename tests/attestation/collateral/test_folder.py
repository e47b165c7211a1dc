"""Imports are whole or nothing, and never go back unless told so; what is loaded is watched."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.collateral import (
    Imported,
    WatchedFolder,
    import_bundle,
    load_folder,
    metrics,
    read_signers,
    vendor_roots,
)
from hermetic.errors import ConfigurationError, VerificationError
from tests.attestation.collateral import by_hand
from tests.attestation.collateral.by_hand import ROWS, whole

ROOTS = vendor_roots()
SIGNERS = read_signers(by_hand.verifier_line())
IN_TIME = datetime(2026, 3, 20, tzinfo=UTC)
LATER = datetime(2026, 5, 1, tzinfo=UTC)
FEWER = ROWS[:6]


def put(folder: Path, data: bytes, time: datetime = IN_TIME, **how: Any) -> Imported:
    return import_bundle(data, folder, SIGNERS, ROOTS, time, **how)


def seen(watched: WatchedFolder) -> tuple[int, int, str | None]:
    """Number of the bundle in use, chips' certificates in it, what is wrong with the folder."""
    return watched.loaded.bundle.number, len(watched.trust.snp.endorsements), watched.problem


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_an_import_puts_one_file_there_and_a_newer_one_replaces_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "collateral"
    first = put(folder, whole())
    assert (first.replaced, first.out_of_time) == (None, ())
    assert put(folder, whole(FEWER, 8)).replaced == 7
    assert content(folder) == {"bundle": whole(FEWER, 8)}
    assert load_folder(folder, signers=SIGNERS).bundle.number == 8


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (whole(FEWER, 6), ["bundle.number"]),
        (whole(FEWER, 7), ["bundle.number"]),
        (whole(FEWER, 8, "2026-03-17T07:59:59Z"), ["bundle.created"]),
        (whole(FEWER, 6, "2026-03-17T07:59:59Z"), ["bundle.number", "bundle.created"]),
        (whole(FEWER, 8, name=by_hand.STRANGER, seed=by_hand.STRANGER_SEED), ["bundle.signature"]),
        (whole([*FEWER, by_hand.FORGED_VCEK], 8), ["item.vouched"]),
        (whole(FEWER, 8)[:-1], ["bundle.contents"]),
    ],
)
def test_what_is_refused_leaves_the_folder_as_it_was(tmp_path: Path, data: bytes, named: list[str]) -> None:
    put(tmp_path, whole())
    with pytest.raises(VerificationError) as refused:
        put(tmp_path, data)
    assert [failure.name for failure in refused.value.failures] == named
    assert content(tmp_path) == {"bundle": whole()}


def test_going_back_takes_an_operator_who_says_so(tmp_path: Path) -> None:
    put(tmp_path, whole())
    assert put(tmp_path, whole(FEWER, 6), unsafe_go_back_to_older_collateral=True).replaced == 7
    assert load_folder(tmp_path).bundle.number == 6
    with pytest.raises(VerificationError, match=r"item\.vouched"):  # it says nothing about whose items they are
        put(tmp_path, whole([*FEWER, by_hand.FORGED_VCEK], 5), unsafe_go_back_to_older_collateral=True)


def test_the_same_bundle_may_be_imported_again(tmp_path: Path) -> None:
    put(tmp_path, whole())
    assert put(tmp_path, whole()).replaced == 7


def test_items_out_of_their_time_are_imported_with_a_warning(tmp_path: Path) -> None:
    late = put(tmp_path, whole(), LATER).out_of_time
    assert [(item.kind, state) for item, state in late] == [
        ("pck-crl", "expired"), ("qe-identity", "expired"), ("tcb-info", "expired"),
    ]  # fmt: skip
    early = put(tmp_path, whole(), datetime(2026, 3, 1, tzinfo=UTC)).out_of_time
    assert {state for _, state in early} == {"not-yet-valid"}


def test_a_bundle_that_was_changed_on_disk_is_not_replaced_silently(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(whole()[:-1])
    with pytest.raises(ConfigurationError, match="expected the bundle that was imported before"):
        put(tmp_path, whole(FEWER, 8))
    with pytest.raises(VerificationError, match=r"bundle\.contents"):
        load_folder(tmp_path)


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "bundle.new").symlink_to(outside)
    put(folder, whole())
    assert outside.read_bytes() == b"precious"
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(outside)
    with pytest.raises(ConfigurationError):
        put(folder, whole(FEWER, 8))


def test_nothing_there_and_too_much_there_are_errors_of_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected a readable file"):
        load_folder(tmp_path)
    with (tmp_path / "bundle").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ConfigurationError, match="at most"):
        load_folder(tmp_path)


def test_who_signed_is_asked_again_where_signers_are_given(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(whole(name=by_hand.STRANGER, seed=by_hand.STRANGER_SEED))
    load_folder(tmp_path)
    with pytest.raises(VerificationError, match=r"bundle\.signature"):
        load_folder(tmp_path, signers=SIGNERS)


def test_a_change_is_loaded_and_a_bad_one_leaves_what_was_there(tmp_path: Path) -> None:
    put(tmp_path, whole())
    watched = WatchedFolder(tmp_path, ROOTS, signers=SIGNERS)
    assert seen(watched) == (7, 1, None)
    assert not watched.refresh()
    put(tmp_path, whole(FEWER, 8))
    assert watched.refresh()
    assert seen(watched) == (8, 0, None)
    held = watched.trust
    (tmp_path / "new").write_bytes(whole(FEWER, 9)[:-1])
    (tmp_path / "new").rename(tmp_path / "bundle")
    assert not watched.refresh()
    assert watched.trust is held
    assert watched.problem is not None
    assert "bundle.contents" in watched.problem
    assert "hermetic_collateral_reload_failures_total 1" in metrics.lines(watched, IN_TIME)
    (tmp_path / "bundle").unlink()
    assert not watched.refresh()
    assert (watched.failures, watched.trust) == (2, held)
    put(tmp_path, whole(FEWER, 9))
    assert watched.refresh()
    assert seen(watched) == (9, 0, None)


def test_a_running_reader_is_not_taken_back_by_who_can_write_the_folder(tmp_path: Path) -> None:
    put(tmp_path, whole(FEWER, 8))
    watched = WatchedFolder(tmp_path, ROOTS)
    (tmp_path / "older").write_bytes(whole())
    (tmp_path / "older").rename(tmp_path / "bundle")
    assert not watched.refresh()
    assert watched.problem is not None
    assert "bundle.number" in watched.problem
    assert watched.loaded.bundle.number == 8
    assert WatchedFolder(tmp_path, ROOTS).loaded.bundle.number == 7  # after a restart


def test_metrics_say_when_the_first_of_each_kind_ends_and_how_many_are_in_which_state(tmp_path: Path) -> None:
    put(tmp_path, whole())
    lines = metrics.loaded_lines(load_folder(tmp_path), LATER)
    assert f'hermetic_collateral_expires_seconds{{kind="tcb-info"}} {-15 * 86400 - 6831}' in lines
    assert 'hermetic_collateral_items{kind="signing-chain",state="valid"} 2' in lines
    assert 'hermetic_collateral_items{kind="tcb-info",state="expired"} 1' in lines
    assert "hermetic_collateral_bundle_number 7" in lines
    created = int(datetime(2026, 3, 17, 8, tzinfo=UTC).timestamp())
    assert f"hermetic_collateral_bundle_created_seconds {created}" in lines
    helped = [line.split()[2] for line in lines if line.startswith("# HELP")]
    assert len(helped) == len(set(helped)) == 4
