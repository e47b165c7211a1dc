"""Evidence of TDX, made through the kernel's interface from recorded quotes."""

import base64
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.abi.ccel import parse_ccel
from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.tcg_event_log import Event, EventType, pack
from hermetic.attestation.abi.tpm import Alg
from hermetic.attestation.attesters import Attester
from hermetic.attestation.attesters.configfs_tsm import ConfigfsTsm
from hermetic.attestation.attesters.tdx import LAST_BYTES, TdxAttester, TdxSettings
from hermetic.attestation.verifiers import tdx
from hermetic.errors import ConfigurationError, TsmError
from tests.attestation.attesters.conftest import Mount
from tests.attestation.attesters.tsm_filesystem import TsmFilesystem
from tests.attestation.verifiers.dcap_quotes import TIMES, VECTORS, evidence, quote, trust

QUOTE = quote("tdx/cos113_00806f_v4.quote")
LOG = VECTORS / "tdx/cos113_ccel_data.dat"
NONCE = (VECTORS / "tdx/cos113_nonce.dat").read_bytes()


def kernel(outblob: bytes = QUOTE, provider: str = "tdx_guest") -> TsmFilesystem:
    return TsmFilesystem(lambda _: (outblob, b""), provider=provider, has_auxblob=False)


def test_recorded_evidence_is_made_again_and_genuine(mount: Mount) -> None:
    attester = TdxAttester(TdxSettings(mount(kernel()), event_log=LOG))
    assert isinstance(attester, Attester)
    made = attester.collect(NONCE)
    assert made == evidence(QUOTE, LOG.read_bytes().rstrip(b"\xff"))  # without what fills the table
    claims = tdx.verify(made, NONCE, trust("intel-2025-07"), TIMES["intel-2025-07"])
    assert claims.tdx is not None
    assert claims.tdx.boot_log
    attester.extend(bytes(32))  # no register for it: nothing changes, nothing fails
    assert attester.collect(NONCE) == made


@pytest.mark.parametrize("log", [None, "missing"])
def test_a_machine_without_a_log_gives_evidence_without(mount: Mount, tmp_path: Path, log: str | None) -> None:
    attester = TdxAttester(TdxSettings(mount(kernel()), event_log=None if log is None else tmp_path / log))
    made: Any = attester.collect(NONCE)
    assert made["cc_eventlog"] is None


def test_a_quote_over_something_else_is_not_passed_on(mount: Mount) -> None:
    with pytest.raises(TsmError, match="over our report data, got another"):
        TdxAttester(TdxSettings(mount(kernel()), event_log=None)).collect(b"\1" * 48)


@pytest.mark.parametrize(
    ("outblob", "provider", "words"),
    [
        (QUOTE, "sev_guest", "expected provider tdx_guest, got 'sev_guest'"),
        (b"short", "tdx_guest", "expected .* at offset"),
        (quote("sgx/phala_00a067_v3.quote"), "tdx_guest", "expected a TDX quote"),
    ],
)
def test_what_is_no_quote_is_an_error(mount: Mount, outblob: bytes, provider: str, words: str) -> None:
    assert Quote.parse(QUOTE).body.report_data == NONCE
    with pytest.raises(TsmError, match=words):
        TdxAttester(TdxSettings(mount(kernel(outblob, provider)), event_log=None)).collect(NONCE)


def test_a_log_that_is_none_is_an_error_at_the_start(tmp_path: Path) -> None:
    tsm = ConfigfsTsm(tmp_path)
    path = tmp_path / "CCEL"
    path.write_bytes(b"no log")
    with pytest.raises(ConfigurationError, match="expected a CCEL event log"):
        TdxAttester(TdxSettings(tsm, event_log=path))
    with pytest.raises(TsmError, match="could not read it"):
        TdxAttester(TdxSettings(tsm, event_log=tmp_path))


@pytest.mark.parametrize("last", [0, 1, 7, 8, 40])
def test_an_event_that_ends_like_the_filling_is_sent_whole(mount: Mount, tmp_path: Path, last: int) -> None:
    event = Event(4, EventType.IPL, {Alg.SHA384: bytes(48)}, b"data" + b"\xff" * last)
    path = tmp_path / "CCEL"
    path.write_bytes(pack([event], (Alg.SHA384,)) + b"\xff" * 1000)
    made: Any = TdxAttester(TdxSettings(mount(kernel()), event_log=path)).collect(NONCE)
    sent = base64.b64decode(made["cc_eventlog"])
    assert parse_ccel(sent).events == (event,)
    assert len(sent) < 1000 or last >= LAST_BYTES
