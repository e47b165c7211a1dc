"""Cases of docs/spec/appraisal-policy.md: forms, and the refusal matrix of each kind's table."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hermetic.attestation.claims import Claims, MeasuredCode, SnpTcb, TpmClaims
from hermetic.attestation.hybrid_key import public_key
from tests.attestation.policy import test_refusals as matrix
from tests.conformance import corpus
from tests.conformance.build import Book, json_edits, remember, source

PAGE = "appraisal-policy"
FORMS = "../appraisal-policy"
NOW = datetime(2026, 11, 23, tzinfo=UTC)
SPEC = Path(__file__).resolve().parents[2] / "docs" / "spec" / f"{PAGE}.md"
ROW = re.compile(r"^\| (.*?) \| .* \[(POL-\d+)\] \|$", re.MULTILINE)
STRICT_SNP = f"{FORMS}/snp.toml"
STRICT = {"snp": "snp", "tdx": "tdx", "sgx": "sgx", "nvgpu": "snp-and-gpus"}
ABOUT = {
    "unknown-field": "POL-62", "missing-field": "POL-62", "missing-table": "POL-62 POL-64", "table-without-kind": "POL-64", "kind-without-table": "POL-64",
    "tpm-table-without-kind": "POL-64", "wire-kind-azure": "POL-65", "wire-kind-nvidia": "POL-65", "any-machine": "POL-66 POL-8", "any-chip": "POL-66",
    "any-platform-sgx": "POL-66", "any-platform-tdx": "POL-66", "any-chip-but-gpus": "POL-68", "gpus-of-anybody": "POL-68", "masked-chip": "POL-67",
    "masked-platform": "POL-67", "until-without-zone": "POL-70", "until-a-day": "POL-70", "until-missing": "POL-70", "status-twice": "POL-71", "advisory-twice": "POL-71",
    "status-revoked": "POL-72", "unmeasured-gpus": "POL-73", "unmeasured-guest": "POL-73", "unmeasured-sample": "POL-73 POL-6", "wrong-format": "POL-1",
    "named-as-the-built-in": "POL-2", "no-models": "POL-3", "kind-twice": "POL-5", "kind-unknown": "POL-5", "sample-in-production": "POL-5", "runtime-data-escaped": "POL-9",
    "covers-any-measurement": "POL-24", "covers-any-enclave": "POL-52", "no-generation": "POL-36", "generation-unknown": "POL-36", "fmc-of-genoa": "POL-37", "turin-without-fmc": "POL-37",
    "moment-missing": "POL-37", "abi-number": "POL-32", "short-chip": "POL-20", "no-chips": "POL-20", "vmpl-4": "POL-30", "svn-as-text": "POL-29", "svn-too-large": "POL-37",
    "no-smt-wish": "POL-33", "debug-has-no-field": "POL-77", "debug-has-no-field-tdx": "POL-77", "devtools-has-no-field": "POL-77", "status-unknown": "POL-39", "status-any": "POL-39",
    "no-statuses": "POL-39", "any-tcb": "POL-36", "gpus-boolean": "POL-53", "no-arch": "POL-55", "hold-only-unknown": "POL-58", "mode-unknown": "POL-60", "driver-in-hex": "POL-56",
    "version-of-words": "POL-56", "bad-digest": "POL-14", "bad-pcr": "POL-16", "text-for-boolean": "POL-6", "not-toml": "POL-62",
}  # fmt: skip
"""What each form of the vectors is about; the others are about all of their tables."""


def cases(book: Book) -> None:
    """All of them."""
    known = _statements()
    _forms(book)
    _matrix(book, known)
    _others(book)
    _tpm(book, known)
    _vectors(book)


def _statements() -> list[tuple[str, str]]:
    """Every row of a table that names checks: pattern of the name, number."""
    found = []
    for first, number in ROW.findall(SPEC.read_text()):
        line = next(one for one in SPEC.read_text().split("\n") if f"[{number}] |" in one)
        for name in re.findall(
            r"`([a-z<>]+(?:\.[a-z_<>]+)+)`", line.split(" | ", 2)[2] if line.count(" | ") > 1 else line
        ):
            fields = "|".join(re.findall(r"`([a-z_0-9]+)`", first))
            pattern = (
                re.escape(name)
                .replace("<kind>", "(tpm|snp|tdx|sgx|nvgpu|sample)")
                .replace("<field>", f"({fields}|rtmr[0-3])")
            )
            found.append((re.sub("<[a-z]+>", "[a-z_0-9]+", pattern), number))
    return found


def _about(rule: str, known: list[tuple[str, str]]) -> str:
    numbers = sorted({number for pattern, number in known if re.fullmatch(pattern, rule)})
    if rule.endswith(".debug"):
        numbers.append("POL-77")
    if rule.endswith(".code_measured"):
        numbers.append("POL-74")
    assert numbers, rule
    return " ".join(numbers)


def _form(name: str) -> str:
    return f"{FORMS}/{name}.toml"


def _forms(book: Book) -> None:
    for path in sorted((corpus.FOLDER / FORMS).glob("*.toml")):
        name, text = path.stem, path.read_text()
        about = ABOUT.get(name, "POL-1 POL-2 POL-62 POL-64")
        refusals = None if text.startswith("# accepted") else ["malformed"]
        book.case(PAGE, f"form-{name}", about, "policy-form", refusals, form=_form(name))


class _Claims:
    """Claims as edits of a base."""

    def __init__(self, book: Book, name: str, good: Claims) -> None:
        self.good = json.loads(json.dumps(good.to_json()))
        self.base = remember(book, f"{name}.claims.json", json.dumps(self.good).encode())

    def template(self, changed: Claims) -> dict[str, Any]:
        edits = json_edits(self.good, json.loads(json.dumps(changed.to_json())))
        return {"$json": self.base, **({"edits": edits} if edits else {})}


def _matrix(book: Book, known: list[tuple[str, str]]) -> None:
    for kind, name in STRICT.items():
        _, good = matrix.GOOD[kind]
        claims = _Claims(book, kind, good)
        rules = {row.rule for row in matrix.ROWS if row.kind == kind}
        about = sorted(
            {number for rule in rules for number in _about(rule, known).split()}, key=lambda one: int(one[4:])
        )
        book.case(
            PAGE, f"{kind}-strict", " ".join(about), "policy", form=_form(name), claims=claims.template(good), time=NOW
        )
        counts: dict[str, int] = {}
        for row in matrix.ROWS:
            if row.kind != kind or row.rule == "nvgpu.debug":  # such claims never say anything but false
                continue
            counts[row.rule] = counts.get(row.rule, 0) + 1
            slug = f"{row.rule.replace('.', '-').replace('_', '-')}-{counts[row.rule]}"
            kinds = tuple(row.change(one) if one.kind == kind else one for one in good.kinds)
            bad = good.model_copy(update={"kinds": kinds})
            book.case(
                PAGE,
                slug,
                _about(row.rule, known),
                "policy",
                [row.rule],
                form=_form(name),
                claims=claims.template(bad),
                time=NOW,
            )


def _others(book: Book) -> None:
    """Rules that need another form, and those over all kinds."""
    _, good = matrix.GOOD["snp"]
    claims = _Claims(book, "snp", good)
    text = corpus.data(_form("snp"))

    def case(
        name: str,
        statements: str,
        changed: Claims,
        refusals: Any = None,
        form: Any = STRICT_SNP,
        time: datetime = NOW,
        of: _Claims = claims,
        **more: Any,
    ) -> None:
        book.case(PAGE, name, statements, "policy", refusals, form=form, claims=of.template(changed), time=time, **more)

    def ours(**changes: Any) -> Claims:
        return good.model_copy(
            update={"hermetic": None if good.hermetic is None else good.hermetic.model_copy(update=changes)}
        )

    case("no-runtime-data", "POL-9", good.model_copy(update={"hermetic": None}), ["hermetic.required"])
    case("demo-guest", "POL-4", ours(profile="demo"), ["hermetic.profile"])
    case("other-publishers", "POL-11", ours(trusted_publishers="f" * 64), ["hermetic.trusted_publishers"])
    case("waived", "POL-12", ours(waivers=("no_network",)), ["hermetic.waivers"])
    case("waivers-unsaid", "POL-12", ours(waivers=None), ["hermetic.waivers"])
    case("best-effort", "POL-13", ours(zeroing="best effort"), ["hermetic.zeroing"])
    hybrid = source(_form("snp"), text.replace(b"[hermetic]\n", b'[hermetic]\nkey_wrap = "hybrid"\n'))
    case("hybrid-key-attested", "POL-80", ours(hybrid_key=public_key(bytes(32))), form=hybrid)
    case("no-hybrid-key-attested", "POL-80", good, ["hermetic.key_wrap"], form=hybrid)
    certified = ours(purpose="serving-key", manifest_digest=None)
    case("a-serving-key-is-asked-for-no-hybrid-one", "POL-80", certified, form=hybrid)
    pinned = source(
        _form("snp"), text.replace(b'manifest_digest = "any"', f'manifest_digest = ["{"9" * 64}"]'.encode())
    )
    case("named-manifest", "POL-10", good, form=pinned)
    case("another-manifest", "POL-10", ours(manifest_digest="8" * 64), ["hermetic.manifest_digest"], form=pinned)
    called = source(
        _form("snp"), re.sub(rb"client_certificate = .*", b'client_certificate = ["spiffe://bank/gpu-7"]', text)
    )
    case("named-caller", "POL-7", good, form=called)
    case(
        "another-caller",
        "POL-7",
        good.model_copy(update={"client": "spiffe://bank/gpu-8"}),
        ["client_certificate"],
        form=called,
    )
    demanded = source(_form("snp"), re.sub(rb"client_certificate = .*", b'client_certificate = "required"', text))
    case("nobody-called", "POL-7", good.model_copy(update={"client": None}), ["client_certificate"], form=demanded)
    free = source(_form("snp"), re.sub(rb"client_certificate = .*", b'client_certificate = "any"', text))
    case(
        "anybody-may-call",
        "POL-7 POL-63",
        good.model_copy(update={"client": None}),
        form=free,
        says={"/not_evaluated/0": "client_certificate"},
    )
    twice = good.joined(Claims(kinds=(matrix.SNP.model_copy(update={"chip_id": "ee" * 64}),)))
    case("a-kind-twice", "POL-5", twice, ["kinds.distinct"])
    case("a-kind-too-many", "POL-5", good.joined(Claims(kinds=(matrix.SGX,))), ["kinds"])
    case("a-kind-missing", "POL-5", good.model_copy(update={"kinds": (matrix.SGX,)}), ["kinds", "kinds.snp"])
    debug = good.joined(Claims(kinds=(matrix.TDX.model_copy(update={"debug": True}),)))
    case("debug-of-a-kind-that-nobody-named", "POL-77", debug, ["kinds", "tdx.debug"])
    vlek = source(_form("snp"), re.sub(rb"signed_by = .*", b'signed_by = "any"', text))
    provided = matrix.SNP.model_copy(update={"signed_by": "VLEK", "csp_id": "provider.example"})
    case("vlek-of-a-named-provider", "POL-22", good.model_copy(update={"kinds": (provided,)}), form=vlek)
    other = provided.model_copy(update={"csp_id": "elsewhere.example"})
    case("vlek-of-another-provider", "POL-22", good.model_copy(update={"kinds": (other,)}), ["snp.csp_id"], form=vlek)
    svns = SnpTcb(bootloader=1, tee=1, snp=4, microcode=80, fmc=1)
    moments = ("reported_tcb", "current_tcb", "committed_tcb", "launch_tcb")
    turin = matrix.SNP.model_copy(update={"generation": "Turin", **dict.fromkeys(moments, svns)})
    case("turin-s-floors", "POL-37", good.model_copy(update={"kinds": (turin,)}))
    for moment in ("reported", "current", "committed"):
        lower = turin.model_copy(update={f"{moment}_tcb": svns.model_copy(update={"fmc": 0})})
        changed = good.model_copy(update={"kinds": (lower,)})
        case(f"turin-s-fmc-{moment}", "POL-37", changed, [f"snp.tcb.{moment}.fmc"])
    for kind in ("tdx", "sgx"):
        case(f"{kind}-missing", "POL-5", good, ["kinds", f"kinds.{kind}"], form=_form(kind))
    for kind, claim in (("tdx", matrix.TDX), ("sgx", matrix.SGX)):
        _, fine = matrix.GOOD[kind]
        of = _Claims(book, kind, fine)
        bare = fine.model_copy(
            update={"kinds": (claim.model_copy(update={"platform": matrix.PLATFORM.model_copy(update={"tcb": None})}),)}
        )
        failing = [f"{kind}.tcb.{rule}" for rule in ("advisories", "evaluation_number", "status")]
        case(f"{kind}-without-collateral", "POL-38", bare, failing, form=_form(kind), of=of)
        for what, change in (("status", {"status": "OutOfDate"}), ("advisories", {"advisories": ("INTEL-SA-00615",)})):
            old = fine.model_copy(update={"kinds": (matrix.tcb(**change)(claim),)})
            case(f"{kind}-{what}-until", "POL-69", old, form=_form(kind), of=of)
            case(
                f"{kind}-{what}-after",
                "POL-69",
                old,
                [f"{kind}.tcb.{what}"],
                form=_form(kind),
                time=matrix.UNTIL,
                of=of,
            )
    form, (_, fine) = corpus.data(_form("tdx")), matrix.GOOD["tdx"]
    of = _Claims(book, "tdx", fine)
    for register in ("mr_td", "rtmr0", "rtmr1", "rtmr2"):
        loose = source(
            _form("tdx"), re.sub(rf"(?m)^{register} = .*".encode(), f'{register} = "any"'.encode(), form, count=1)
        )
        case(f"{register.replace('_', '-')}-not-pinned", "POL-75", fine, ["tdx.code_pinned"], form=loose, of=of)


def _tpm(book: Book, known: list[tuple[str, str]]) -> None:
    """The table of TPMs, and what is always checked of them."""
    pcrs = {str(index): "00" * 32 for index in range(24)} | {"4": "4" * 64, "8": "8" * 64, "9": "9" * 64}
    code = MeasuredCode(by="verity-command-line", root_hashes=("d" * 64,), rests_on=(0, 2, 4, 8, 9))
    tpm = TpmClaims(
        checks=(), software=False, enrolled="certificate", ak_name="0" * 68, ak_spki="0" * 64, ek="b" * 64, reset_count=1, restart_count=0,
        firmware_version="0" * 16, clock_safe=True, pcrs=pcrs, boot_log=True, secure_boot=True, measured_code=code, log_pcr=14,
        log_base="0" * 64, manifests=("9" * 64,),
    )  # fmt: skip
    good = matrix.claims_of(tpm)
    claims = _Claims(book, "tpm", good)
    rules = (
        "tpm.ek",
        "tpm.enrolled",
        "tpm.pcrs.0",
        "tpm.root_hashes",
        "tpm.secure_boot",
        "tpm.log_base",
        "tpm.code_measured",
    )
    about = " ".join(sorted({number for rule in rules for number in _about(rule, known).split()}))
    book.case(
        PAGE,
        "tpm-strict",
        f"{about} POL-3 POL-75 POL-79",
        "policy",
        form=_form("production"),
        claims=claims.template(good),
        time=NOW,
    )
    for name, statements, refusals, changes in (
        ("another-ek", "POL-14", ["tpm.ek"], {"ek": "c" * 64}),
        ("entered-by-hand", "POL-15", ["tpm.ek", "tpm.enrolled"], {"enrolled": "provisioned", "ek": None}),
        ("another-pcr", "POL-16", ["tpm.pcrs.4"], {"pcrs": pcrs | {"4": "5" * 64}}),
        ("another-root", "POL-17", ["tpm.root_hashes"], {"measured_code": code.model_copy(update={"root_hashes": ("e" * 64,)})}),
        ("secure-boot-off", "POL-18", ["tpm.secure_boot"], {"secure_boot": False}),
        ("another-base", "POL-19", ["tpm.log_base"], {"log_base": "1" * 64}),
        ("not-measured", "POL-6 POL-74", ["tpm.code_measured"], {"measured_code": None}),
        ("software", "POL-4", ["tpm.software"], {"software": True}),
        ("manifest-not-measured", "POL-79", ["tpm.manifests"], {"manifests": ()}),
        ("rests-on-more", "POL-75", ["tpm.code_pinned"], {"measured_code": code.model_copy(update={"rests_on": (0, 2, 4, 8, 9, 12)})}),
    ):  # fmt: skip
        bad = good.model_copy(update={"kinds": (tpm.model_copy(update=changes),)})
        book.case(
            PAGE,
            f"tpm-{name}",
            statements,
            "policy",
            refusals,
            form=_form("production"),
            claims=claims.template(bad),
            time=NOW,
        )
    guest = good.model_copy(update={"kinds": (matrix.SNP,)})
    book.case(
        PAGE,
        "tpm-missing",
        "POL-5",
        "policy",
        ["kinds", "kinds.tpm"],
        form=_form("production"),
        claims=claims.template(guest),
        time=NOW,
    )
    key = good.model_copy(update={
        "hermetic": matrix.HERMETIC.model_copy(update={"purpose": "serving-key", "manifest_digest": None}),
        "kinds": (tpm.model_copy(update={"manifests": ()}),),
    })  # fmt: skip
    book.case(
        PAGE, "tpm-serving-key", "POL-79", "policy", form=_form("production"), claims=claims.template(key), time=NOW
    )


def _vectors(book: Book) -> None:
    """The appraisals that lie beside the forms."""
    for path in sorted((corpus.FOLDER / FORMS / "cases").glob("*.json")):
        one = json.loads(path.read_text())
        about = {"kinds.sample": "POL-78", "kinds": "POL-5"}
        statements = sorted({about[name] for name in one["failed"] if name in about}) or ["POL-63"]
        if path.stem.startswith("one-kind") or "code_measured" in " ".join(one["not_evaluated"]):
            statements.append("POL-76")
        book.case(
            PAGE, f"recorded-{path.stem}", " ".join(statements), "policy", one["failed"] or None, form=f"{FORMS}/{one['form']}", time=datetime.fromisoformat(one["time"]),
            claims={"$json": {"file": f"{FORMS}/cases/{path.name}", "decode": ["/claims"]}},
        )  # fmt: skip
