"""Cases of docs/spec/event-log.md."""

import json
from typing import Any

from hermetic.attestation.abi import tcg_event_log
from hermetic.attestation.abi.event_log import Event as OwnEvent
from hermetic.attestation.abi.event_log import EventLog
from hermetic.attestation.abi.tcg_event_log import Event, EventType
from hermetic.attestation.abi.tpm import Alg, extended
from hermetic.attestation.verifiers.boot_chain import PHASES
from tests.attestation.verifiers.test_boot_chain import (
    FIRMWARE,
    OTHER,
    ROOT,
    VERITY,
    grub,
    measured,
    section,
    sha256,
    stub,
)
from tests.conformance import corpus
from tests.conformance.build import Book, remember
from tests.conformance.evidence import ZEROS, Quotes

PAGE = "event-log"
MALFORMED = ["malformed"]
UBUNTU, DEBIAN = "../tpm/eventlog_ubuntu-2404-amd-sevsnp.bin", "../tpm/eventlog_debian-10.bin"


def cases(book: Book) -> None:
    """All of them."""
    _own(book)
    _firmware(book)
    Boots(book).cases()


def _own(book: Book) -> None:
    known = "../event-log/three-on-a-base.json"
    whole = json.loads(corpus.data(known))
    base = {"$json": {"file": known, "decode": ["/log"]}}
    book.case(
        PAGE,
        "three-on-a-base",
        "LOG-1 LOG-4 LOG-5 LOG-6",
        "own-log",
        log=base,
        base=whole["base"],
        says={"/replay": whole["value"]},
    )
    empty = json.loads(corpus.data("../event-log/empty.json"))
    book.case(PAGE, "no-events", "LOG-5 LOG-6", "own-log", log=empty["log"], says={"/replay": ZEROS.hex()})
    for name, statement, edit in (
        ("unknown-member", "LOG-1", {"pointer": "/more", "set": 1}), ("missing-member", "LOG-1", {"pointer": "/pcr", "remove": True}),
        ("another-format", "LOG-1", {"pointer": "/format", "set": "hermetic-event-log/2"}), ("pcr-as-text", "LOG-1", {"pointer": "/pcr", "set": "14"}),
        ("upper-case", "LOG-1", {"pointer": "/events/0/digest", "set": "AB" * 32}), ("short-digest", "LOG-1", {"pointer": "/events/0/digest", "set": "ab"}),
        ("another-type", "LOG-3", {"pointer": "/events/0/type", "set": "policy"}), ("member-of-an-event", "LOG-1", {"pointer": "/events/0/more", "set": 1}),
    ):  # fmt: skip
        book.case(PAGE, f"own-{name}", statement, "own-log", MALFORMED, log={**base, "edits": [edit]})
    many = {
        "format": "hermetic-event-log/1",
        "pcr": 14,
        "events": {"$repeat": {"digest": "ab" * 32, "type": "manifest"}, "times": 4097},
    }
    book.case(PAGE, "own-too-many-events", "LOG-2", "own-log", MALFORMED, log=many)


def _firmware(book: Book) -> None:
    replayed = tcg_event_log.replay(tcg_event_log.parse(corpus.data(UBUNTU)))
    book.case(
        PAGE,
        "firmware-log",
        "LOG-9 LOG-16",
        "firmware-log",
        log=UBUNTU,
        says={f"/pcrs/{pcr}": value.hex() for pcr, value in replayed.items()},
    )
    locality = Event(0, EventType.NO_ACTION, {Alg.SHA256: ZEROS}, b"StartupLocality\0\x03")
    log = remember(book, "startup-locality.log", tcg_event_log.pack([locality, FIRMWARE[0]]))
    value = extended(Alg.SHA256, bytes(31) + b"\3", FIRMWARE[0].digests[Alg.SHA256])
    book.case(PAGE, "startup-locality", "LOG-10", "firmware-log", log=log, says={"/pcrs/0": value.hex()})
    data = corpus.data(DEBIAN)
    for name, edit in (
        ("no-header", {"at": 32, "remove": 1, "insert": "00"}),
        ("cut", {"at": len(data) - 1, "remove": 1}),
        ("with-more", {"at": len(data), "insert": "00"}),
    ):
        book.case(
            PAGE, f"firmware-log-{name}", "LOG-9", "firmware-log", MALFORMED, log={"file": DEBIAN, "edits": [edit]}
        )


class Boots:
    """Quotes beside firmware logs, by keys of ours."""

    def __init__(self, book: Book) -> None:
        self.quotes = Quotes(book, "boot", PAGE)

    def case(self, name: str, statements: str, *events: Event, refusals: Any = None, pcrs: dict[int, bytes] | None = None, own: EventLog | None = None,
             log: bytes | None = None, says: Any = None, quoted: Any = None) -> None:  # fmt: skip
        """A boot that measured `events` after the firmware's, and what it leads to."""
        values = [ZEROS] * 24
        for one in quoted if quoted is not None else (*FIRMWARE, *events):
            values[one.pcr] = extended(Alg.SHA256, values[one.pcr], one.digests[Alg.SHA256])
        for pcr, value in (pcrs or {}).items():
            values[pcr] = value
        made = log if log is not None else tcg_event_log.pack((*FIRMWARE, *events))
        self.quotes.case(name, statements, refusals, boot_log=made, pcrs=tuple(values), event_log=own, says=says)

    def cases(self) -> None:
        """All of them."""
        code = "/tpm/measured_code"
        by_grub = {
            f"{code}/by": "verity-command-line",
            f"{code}/root_hashes": [ROOT],
            f"{code}/rests_on": [0, 2, 4, 8, 9],
        }
        by_stub = {f"{code}/by": "verity-command-line", f"{code}/rests_on": [0, 2, 4, 9, 12, 13]}
        by_uki = {f"{code}/by": "uki", f"{code}/root_hashes": [], f"{code}/rests_on": [0, 2, 4, 9, 12, 13]}
        nothing = {code: None}
        self.case("grub", "LOG-11 LOG-17 LOG-18 LOG-21", grub(VERITY), says=by_grub)
        self.case("systemd-stub", "LOG-17 LOG-21", stub(VERITY), says=by_stub)
        self.case("unified-kernel-image", "LOG-20 LOG-21", section(".linux"), says=by_uki)
        self.case("no-command-line", "LOG-17 LOG-20", says=nothing)
        self.case("two-lines-of-one-root", "LOG-17", grub(VERITY), grub(f"{VERITY} quiet"), says=by_grub)
        self.case("two-roots", "LOG-17", grub(VERITY), grub(f"roothash={OTHER}"), says=nothing)
        self.case("two-roots-in-one-line", "LOG-17", grub(f"{VERITY} roothash={OTHER}"), says=nothing)
        self.case("one-line-without-a-root", "LOG-17", grub(VERITY), grub("quiet"), says=nothing)
        self.case("verity-off", "LOG-17", grub(f"{VERITY} systemd.verity=no"), says=nothing)
        self.case("lines-in-two-pcrs", "LOG-17", grub(VERITY), stub(VERITY), says=nothing)
        lying = measured(8, EventType.IPL, b"kernel_cmdline: " + VERITY.encode() + b"\0", b"quiet")
        self.case("text-that-was-not-hashed", "LOG-17", lying, says=nothing)
        table = f'dm-mod.create="root,,,ro,0 8 verity 1 /dev/sda /dev/sdb 4096 4096 1 1 sha256 {ROOT} aa"'
        self.case("verity-table", "LOG-17", grub(table), says=by_grub)
        self.case("uki-and-a-command-line-without-root", "LOG-20", section(".linux"), stub("quiet"), says=nothing)
        without = tuple(one for one in FIRMWARE if not (one.type == EventType.SEPARATOR and one.pcr == 5))
        self.case(
            "separator-missing",
            "LOG-16",
            log=tcg_event_log.pack((*without, grub(VERITY))),
            quoted=(*without, grub(VERITY)),
            says=nothing,
        )
        no_loader = FIRMWARE[:-1]
        self.case(
            "no-boot-application",
            "LOG-16",
            log=tcg_event_log.pack((*no_loader, grub(VERITY))),
            quoted=(*no_loader, grub(VERITY)),
            says=nothing,
        )
        for pcr in range(8):
            self.case(
                f"firmware-pcr{pcr}-differs", "LOG-11", refusals=[f"tpm.boot_log.pcr{pcr}"], pcrs={pcr: b"\1" * 32}
            )
        for pcr in (8, 9, 12, 13):
            event = measured(pcr, EventType.EVENT_TAG, b"loaded")
            self.case(
                f"loader-pcr{pcr}-differs", "LOG-12", event, refusals=[f"tpm.boot_log.pcr{pcr}"], pcrs={pcr: b"\1" * 32}
            )
        self.case("loader-pcrs-without-events", "LOG-12", pcrs={8: b"\1" * 32, 9: b"\1" * 32})
        self.case(
            "running-system-s-pcrs",
            "LOG-15",
            measured(14, EventType.IPL, b"MokList"),
            pcrs={10: b"\1" * 32, 14: b"\1" * 32, 15: b"\2" * 32},
        )
        value = extended(Alg.SHA256, ZEROS, section(".linux").digests[Alg.SHA256])
        for number, phase in enumerate(PHASES, 1):
            value = extended(Alg.SHA256, value, sha256(phase))
            self.case(f"phase-{number}", "LOG-13", section(".linux"), pcrs={11: value})
        self.case(
            "unknown-phase",
            "LOG-13",
            section(".linux"),
            pcrs={11: extended(Alg.SHA256, value, sha256(b"other"))},
            refusals=["tpm.boot_log.pcr11"],
        )
        own = EventLog(14, (OwnEvent(b"m" * 32),))
        mok = measured(14, EventType.IPL, b"MokList")
        base = extended(Alg.SHA256, ZEROS, mok.digests[Alg.SHA256])
        self.case(
            "own-log-on-a-base",
            "LOG-6 LOG-7 LOG-14",
            mok,
            own=own,
            pcrs={14: own.replay(base)},
            says={"/tpm/log_base": base.hex(), "/tpm/manifests": [(b"m" * 32).hex()]},
        )
        self.case(
            "own-log-without-its-base",
            "LOG-7 LOG-14",
            mok,
            own=own,
            pcrs={14: own.replay()},
            refusals=["tpm.event_log.replay"],
        )
        self.case(
            "own-log-in-pcr-8",
            "LOG-8 LOG-14",
            own=EventLog(8, own.events),
            pcrs={8: own.replay()},
            says={"/tpm/log_pcr": 8},
        )
        self.case("own-log-where-the-chain-rests", "LOG-14 LOG-21", grub(VERITY), own=EventLog(8, own.events),
                  pcrs={8: own.replay(extended(Alg.SHA256, ZEROS, grub(VERITY).digests[Alg.SHA256]))}, says=nothing)  # fmt: skip
        for pcr in (7, 16, 17, 22, 23):
            self.case(f"own-log-in-pcr-{pcr}", "LOG-8", own=EventLog(pcr, own.events), refusals=["tpm.event_log.pcr"])
