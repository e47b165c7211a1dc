"""The kernel's interface for reports, against a file system that behaves like it."""

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hermetic.attestation.attesters import configfs_tsm
from hermetic.attestation.attesters.configfs_tsm import ConfigfsTsm, TsmReport
from hermetic.errors import TsmError
from tests.attestation.attesters.conftest import Mount
from tests.attestation.attesters.tsm_filesystem import Entry, TsmFilesystem, fail

DATA = bytes(range(64))


def echo(report_data: bytes) -> tuple[bytes, bytes]:
    return b"report about " + report_data, b"certificates"


def test_a_report_is_about_what_was_asked(mount: Mount) -> None:
    kernel = TsmFilesystem(echo)
    tsm = mount(kernel)
    assert tsm.report(DATA) == TsmReport("sev_guest", b"report about " + DATA, b"certificates")
    assert not kernel.entries, "the entry was not removed"


def test_large_blobs_are_read_whole(mount: Mount) -> None:
    quote = bytes(range(256)) * 800
    assert mount(TsmFilesystem(lambda _: (quote, b""))).report(DATA).outblob == quote


def test_a_provider_without_auxblob_has_none(mount: Mount) -> None:
    tsm = mount(TsmFilesystem(echo, provider="tdx_guest", has_auxblob=False))
    assert tsm.report(DATA) == TsmReport("tdx_guest", b"report about " + DATA, b"")


def test_reports_at_once_do_not_meet(mount: Mount) -> None:
    kernel = TsmFilesystem(echo)
    tsm = mount(kernel)
    with ThreadPoolExecutor(8) as pool:
        asked = [bytes([index]) * 64 for index in range(64)]
        assert [made.outblob for made in pool.map(tsm.report, asked)] == [b"report about " + one for one in asked]
    assert not kernel.entries


@pytest.mark.parametrize("attribute", ["provider", "outblob", "auxblob", "generation"])
def test_another_writer_is_noticed_and_the_report_made_anew(mount: Mount, attribute: str) -> None:
    meddled: list[str] = []

    def meddle(kernel: TsmFilesystem, entry: Entry, name: str) -> None:
        if name == attribute and not meddled:
            meddled.append(entry.name)
            kernel.write(entry, b"\xee" * 64)

    kernel = TsmFilesystem(echo, on_read=meddle)
    assert mount(kernel).report(DATA).outblob == b"report about " + DATA
    assert meddled
    assert not kernel.entries


def test_another_writer_that_does_not_stop_is_an_error(mount: Mount) -> None:
    def meddle(kernel: TsmFilesystem, entry: Entry, name: str) -> None:
        if name == "outblob":
            kernel.write(entry, b"\xee" * 64)

    kernel = TsmFilesystem(echo, on_read=meddle)
    with pytest.raises(TsmError, match="only we write to, got another writer 4 times"):
        mount(kernel).report(DATA)
    assert not kernel.entries


@pytest.mark.parametrize("attribute", ["provider", "outblob", "auxblob", "generation"])
def test_what_cannot_be_read_is_named(mount: Mount, attribute: str) -> None:
    def refuse(_: TsmFilesystem, __: Entry, name: str) -> None:
        if name == attribute:
            fail(errno.EIO)

    kernel = TsmFilesystem(echo, on_read=refuse)
    with pytest.raises(TsmError, match=rf"{attribute}: could not read it: Input/output error"):
        mount(kernel).report(DATA)
    assert not kernel.entries, "the entry was not removed"


def test_a_blob_without_end_is_refused(mount: Mount) -> None:
    tsm = mount(TsmFilesystem(lambda _: (bytes(configfs_tsm.MAX_BLOB_SIZE + 1), b"")))
    with pytest.raises(TsmError, match="outblob: expected at most 262144 bytes, got more"):
        tsm.report(DATA)


def test_a_kernel_without_a_provider_is_named(mount: Mount) -> None:
    with pytest.raises(TsmError, match="expected configfs-tsm with a provider, got No such device or address"):
        mount(TsmFilesystem(echo, provider=None)).report(DATA)


def test_a_kernel_without_the_interface_is_named(tmp_path: Path) -> None:
    with pytest.raises(TsmError, match="expected configfs-tsm with a provider, got No such file or directory"):
        ConfigfsTsm(tmp_path / "none").report(DATA)


def test_a_folder_that_is_no_configfs_is_named(tmp_path: Path) -> None:
    with pytest.raises(TsmError, match="inblob: could not write it: No such file"):
        ConfigfsTsm(tmp_path).report(DATA)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_has_64_bytes(tmp_path: Path, size: int) -> None:
    with pytest.raises(TsmError, match=f"expected 64 bytes, got {size}"):
        ConfigfsTsm(tmp_path).report(bytes(size))
