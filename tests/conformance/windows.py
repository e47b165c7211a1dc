"""Cases of docs/spec/collateral-bundle.md: warning and grace, and what machines need."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.attestation.collateral import by_hand
from tests.conformance import claims, tdx
from tests.conformance.build import Book, b64, short
from tests.conformance.bundles import ACCEPTED, PAGE

END = datetime(2026, 4, 15, 22, 6, 9, tzinfo=UTC)  # of the TCB info in it; identity and list end minutes later
DAY = timedelta(days=1)
QUOTE = "../tdx/google_90c06f_v5.quote"
FORM = 'format = "hermetic-collateral-windows/1"\n'
INTEL = "[kinds.tcb-info]\ngrace_days = 3\n[kinds.qe-identity]\ngrace_days = 3\n"
LISTS = "[kinds.pck-crl]\ngrace_days = 3\n"


def cases(book: Book) -> None:
    """All of them."""
    _windows(book)
    _grace(book)
    _machines(book)


def _windows(book: Book) -> None:
    start = datetime(2026, 3, 16, 22, 6, 9, tzinfo=UTC)

    def at(name: str, statements: str, form: str, time: datetime, **states: str) -> None:
        rows = {"tcb": by_hand.TCB_INFO, "list": by_hand.PCK_CRL, "vcek": by_hand.VCEK}
        says = {f"/{rows[one][0]} {rows[one][1]}": state for one, state in states.items()}
        book.case(
            PAGE,
            f"window-{name}",
            statements,
            "windows",
            form=short((FORM + form).encode()),
            bundle=ACCEPTED,
            time=time,
            says=says,
        )

    second = timedelta(seconds=1)
    at("before", "COL-50", "", start - second, tcb="not-yet-valid")
    at("begins", "COL-51", "warn_before_days = 0\n", start, tcb="valid")
    at("default-warning", "COL-43 COL-52", "", END - 30 * DAY, tcb="expiring")
    at("a-second-before-the-warning", "COL-43 COL-51", "warn_before_days = 29\n", END - 29 * DAY - second, tcb="valid")
    at("to-the-end", "COL-52", "", END, tcb="expiring")
    at("without-grace", "COL-43 COL-54", "", END + second, tcb="expired")
    at("in-grace", "COL-53", "grace_days = 5\n", END + 5 * DAY, tcb="grace")
    at("behind-grace", "COL-54", "grace_days = 5\n", END + 5 * DAY + second, tcb="expired")
    at("a-kind-of-its-own", "COL-43", "grace_days = 5\n[kinds.tcb-info]\ngrace_days = 0\n", END + second, tcb="expired")
    at("lists-have-none", "COL-44", "grace_days = 5\n", END + DAY, tcb="grace", list="expired")
    at("lists-with-their-own", "COL-44", LISTS, END + DAY, tcb="expired", list="grace")
    ends = datetime(2033, 2, 17, 23, 1, 36, tzinfo=UTC)
    at("keys-have-none", "COL-45", "grace_days = 90\n", ends + second, vcek="expired")
    for name, statements, form in (
        ("warning-of-367", "COL-43", "warn_before_days = 367\n"), ("grace-of-91", "COL-43", "grace_days = 91\n"), ("less-than-none", "COL-43", "grace_days = -1\n"),
        ("grace-in-words", "COL-43", 'grace_days = "7"\n'), ("unknown-member", "COL-46", "grace = 7\n"), ("unknown-kind", "COL-46", "[kinds.tcb]\ngrace_days = 1\n"),
        ("unknown-member-of-a-kind", "COL-46", "[kinds.tcb-info]\ngrace = 1\n"), ("grace-of-a-vcek", "COL-45", "[kinds.vcek]\ngrace_days = 1\n"),
        ("grace-of-a-vlek", "COL-45", "[kinds.vlek]\ngrace_days = 1\n"),
    ):  # fmt: skip
        book.case(
            PAGE,
            f"windows-{name}",
            statements,
            "windows",
            ["malformed"],
            form=short((FORM + form).encode()),
            bundle=ACCEPTED,
            time=start,
        )


def _grace(book: Book) -> None:
    """A quote, judged with a bundle under windows."""
    for name, form in (
        ("none", ""),
        ("intel-s", INTEL),
        ("lists", LISTS),
        ("both", INTEL + LISTS),
        ("ninety", "grace_days = 90\n"),
    ):
        book.trust(
            f"bundle-with-grace-{name}",
            dcap={"roots": [tdx.ROOT]},
            bundle=ACCEPTED,
            windows=short((FORM + form).encode()),
        )
    of = "tdx.collateral."
    info, identity, crl = f"{of}tcb_info.time", f"{of}qe_identity.time", f"{of}pck_crl.time"
    for name, statements, trust, time, refusals in (
        ("in-time", "COL-47", "both", END - DAY, None),
        ("in-grace", "COL-47 COL-49", "both", END + DAY, None),
        ("to-the-second", "COL-47 COL-49", "both", END + 3 * DAY, None),
        ("over", "COL-47", "both", END + 3 * DAY + timedelta(seconds=1), [info]),
        ("without-any", "COL-47", "none", END + DAY, [info, identity, crl]),
        ("of-intel-s-answers-alone", "COL-44 COL-47", "intel-s", END + DAY, [crl]),
        ("of-lists-alone", "COL-47", "lists", END + DAY, [info, identity]),
        ("before-its-time", "COL-47", "both", datetime(2026, 3, 16, 22, 6, 8, tzinfo=UTC), [crl, identity, info]),
        ("of-the-platform-s-own", "COL-48", "ninety", datetime(2034, 1, 1, tzinfo=UTC), PLATFORM_OVER),
    ):
        what: dict[str, Any] = {"judge": "tdx", "evidence": {"quote": b64(QUOTE)}, "report_data": tdx.data_of(QUOTE).hex(),
                                "trust": f"bundle-with-grace-{trust}", "time": time.isoformat()}  # fmt: skip
        says = {}
        if refusals is None:
            found = claims._said(book, what, ("tdx",))
            says = {"says": {"/tdx/checks": found["/tdx/checks"]}}
            graced = sorted(one for one in found["/tdx/checks"] if one.endswith(".grace"))
            assert (graced == sorted(f"{one}.grace" for one in (info, identity, crl))) is (name != "in-time"), graced
            assert "tdx.witness" in found["/tdx/checks"]
        book.case(PAGE, f"grace-{name}", statements, "tdx", refusals, evidence=what["evidence"], report_data=what["report_data"], trust=what["trust"],
                  time=time, **says)  # fmt: skip


PLATFORM_OVER: Sequence[str] = (
    "tdx.collateral.pck_crl.time", "tdx.collateral.qe_identity.signer.time", "tdx.collateral.qe_identity.time",
    "tdx.collateral.root_crl.time", "tdx.collateral.tcb_info.signer.time", "tdx.collateral.tcb_info.time", "tdx.pck.time",
)  # fmt: skip


def _machines(book: Book) -> None:
    time = datetime(2026, 4, 1, tzinfo=UTC)
    dcap = ('dcap = { kind = "TDX", fmspc = "90c06f000000", pck_ca = "platform", cpu_svn = "' + "ff" * 16 + '", pce_svn = 13, '
            'tee_tcb_svn = "' + "ff" * 16 + '" }\n')  # fmt: skip
    gpus = 'gpus = [{ chip = "GH100", driver = "550.144.03" }]\n'
    head = 'format = "hermetic-machines/1"\n[[machines]]\nname = "one"\n'

    def inventory(
        name: str, statements: str, text: str, *, says: Any = None, given: Any = None, bundle: Any = ACCEPTED
    ) -> None:
        book.case(PAGE, f"machine-{name}", statements, "machines", None if says is not None else ["malformed"], bundle=bundle, machines=short(text.encode()),
                  given=given or {}, time=time, **({"says": says} if says is not None else {}))  # fmt: skip

    needs = {"pck-crl Intel SGX PCK Platform CA": "expiring", "qe-identity TD_QE": "expiring", "root-crl Intel SGX Root CA": "valid",
             "tcb-info TDX 90c06f000000 0000": "expiring"}  # fmt: skip
    inventory("of-an-inventory", "COL-55 COL-56", head + dcap + gpus, says={
        **{f"/one/needs/{name}": state for name, state in needs.items()}, "/one/missing": ["driver-rim GH100 550.144.03"],
        "/one/fails_at": END.isoformat(), "/one/shortfalls": [],
    })  # fmt: skip
    for name, text in (("with-another-member", head + 'rack = "7"\n'), ("without-a-format", head.partition("\n")[2]), ("of-another-tee", head + dcap.replace("TDX", "SEV")),
                       ("with-a-short-svn", head + dcap.replace("ff" * 16, "ff", 1)), ("without-any", 'format = "hermetic-machines/1"\nmachines = []\n')):  # fmt: skip
        inventory(name, "COL-55", text)
    vcek = by_hand.GENOA.split(" ")
    snp_machine = head + f'snp = {{ generation = "Genoa", chip = "{vcek[1]}", tcb = "10.0.25.27" }}\n'
    inventory("that-lacks-its-vcek", "COL-57", snp_machine, says={
        "/one/missing": [f"vcek Genoa {vcek[1]} 10.0.25.27", "amd-crl ARK-Genoa"], "/one/fails_at": None,
        "/one/shortfalls/0/better/0/short": [{"component": "snp", "has": 25, "needs": 27}],
    })  # fmt: skip
    floors = {"floors": {"Genoa": {"bootloader": 11, "snp": 27}}}
    inventory("under-the-floors", "COL-59", snp_machine, given=floors, says={
        "/one/shortfalls/0/better/0/short": [{"component": "bootloader", "has": 10, "needs": 11}, {"component": "snp", "has": 25, "needs": 27}],
    })  # fmt: skip
    low = head + dcap.replace('"' + "ff" * 16 + '", pce_svn = 13', '"' + "00" * 16 + '", pce_svn = 0')
    best = json.loads(by_hand.TCB_INFO[4])["tcbInfo"]["tcbLevels"][0]
    inventory(
        "below-every-level",
        "COL-58",
        low,
        says={
            "/one/shortfalls/0/part": "platform",
            "/one/shortfalls/0/better/2/level": "UpToDate",
            "/one/shortfalls/0/better/2/date": best["tcbDate"].replace("Z", "+00:00"),
        },
    )
    book.case(PAGE, "machine-of-evidence", "COL-56", "machines", bundle=ACCEPTED, evidence_file=QUOTE, given={}, time=time,
              says={f"/machine/needs/{name}": state for name, state in needs.items()})  # fmt: skip
