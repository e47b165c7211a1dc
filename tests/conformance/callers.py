"""Cases of docs/spec/server-evidence.md: statements, their tree, and replies that a caller judges."""

import json
import re
from typing import Any

from hermetic.attestation.abi.event_log import Event, EventLog
from hermetic.attestation.checks import Checks
from hermetic.attestation.evidence import canonical, fit_to, report_data
from hermetic.attestation.policy.propose import propose
from hermetic.attestation.roots import SnpTrust, TrustRoots
from hermetic.attestation.server_evidence import Statement, StatementTree, leaf
from hermetic.attestation.verifiers import nvgpu, snp
from tests.attestation.collateral import by_hand
from tests.attestation.verifiers.nvgpu_made import NOW
from tests.client.callers_form import callers_form
from tests.conformance import composite, corpus, evidence
from tests.conformance.build import Book, json_edits, remember, short, source

PAGE = "server-evidence"
NONCE, SPKI = b"\1" * 32, b"\2" * 32
MANIFEST, ANOTHER = "ab" * 32, "cd" * 32
PUBLISHERS = "ee" * 32
SERVER = "server.example"
SAYS: dict[str, Any] = {
    "nonce": NONCE.hex(),
    "spki_sha256": SPKI.hex(),
    "manifests": (),
    "policies": ("profile:production", f"publishers:{PUBLISHERS}", "zeroing:enforced"),
    "waivers": (),
    "log_head": "1:" + "ff" * 32,
}
FORM = callers_form("production", server=SERVER, publishers=PUBLISHERS)


def cases(book: Book) -> None:
    """All of them."""
    _statements(book)
    _trees(book)
    Replies(book).cases()
    _beside_devices(book)


def said(**changes: Any) -> Statement:
    """A statement."""
    return Statement(**{**SAYS, **changes})


def _statements(book: Book) -> None:
    good = said(manifests=(MANIFEST, ANOTHER), waivers=("memory",)).encode()
    members = json.loads(good)

    def case(name: str, statements: str, text: bytes, *, says: Any = None) -> None:
        refusals = None if says is not None else ["malformed"]
        book.case(
            PAGE,
            f"statement-{name}",
            statements,
            "statement",
            refusals,
            statement=short(text),
            **({"says": says} if says else {}),
        )

    rows = " ".join(f"SRV-{number}" for number in range(1, 10))
    case("whole", rows, good, says={f"/{name}": value for name, value in members.items()})
    for name, statement, change in (
        ("another-context", "SRV-3", {"context": "hermetic-evidence/2"}), ("short-nonce", "SRV-4", {"nonce": "01" * 31}),
        ("nonce-in-capitals", "SRV-4", {"nonce": "AB" * 32}), ("short-key", "SRV-5", {"spki-sha256": "02" * 31}),
        ("manifests-in-another-order", "SRV-6", {"manifests": [ANOTHER, MANIFEST]}), ("a-manifest-twice", "SRV-6", {"manifests": [MANIFEST] * 2}),
        ("a-manifest-of-words", "SRV-6", {"manifests": ["fraud"]}), ("policies-in-another-order", "SRV-7", {"policies": members["policies"][::-1]}),
        ("a-policy-twice", "SRV-7", {"policies": ["profile:demo", "profile:production"]}), ("waivers-in-another-order", "SRV-8", {"waivers": ["threads", "memory"]}),
        ("a-waiver-twice", "SRV-8", {"waivers": ["memory", "memory"]}), ("a-log-head-of-numbers", "SRV-9", {"log-head": 7}),
        ("more-members", "SRV-2", {"additional-evidence": ""}), ("a-nonce-as-a-challenge", "SRV-2 SRV-15", {"tee-pubkey": {}}),
    ):  # fmt: skip
        case(name, statement, canonical({**members, **change}))
    for name in members:
        case(f"without-{name}", "SRV-2", canonical({one: value for one, value in members.items() if one != name}))
    case("with-spaces", "SRV-1", good.replace(b",", b", ", 1))
    case("in-another-order", "SRV-1", json.dumps(dict(reversed(members.items())), separators=(",", ":")).encode())
    case("a-member-twice", "SRV-1", good.replace(b'"waivers"', b'"waivers":[],"waivers"'))


def _trees(book: Book) -> None:
    for file in ("one", "seven"):
        path = f"../server-evidence/{file}.json"
        vector = json.loads(corpus.data(path))
        texts = [{"file": path, "decode": [f"/statements/{at}/canonical"]} for at in range(len(vector["statements"]))]
        says = {"/root": vector["root"], "/size": vector["size"], "/device": vector["device-report-data"],
                "/primary": vector["report-data"], "/paths": [one["path"] for one in vector["statements"]]}  # fmt: skip
        given = {"additional-evidence": vector["additional-evidence"]}
        book.case(
            PAGE,
            f"tree-of-{file}",
            "SRV-10 SRV-12 SRV-13 SRV-14",
            "statement-tree",
            leaves=texts,
            given=given,
            says=says,
        )


class Replies:
    """Replies of a machine with a TPM, by keys of ours."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.quotes = evidence.Quotes(book, "callers", PAGE)
        self.trust = self.quotes.trusted

    def reply(
        self, statement: Statement, others: int = 2, manifests: tuple[str, ...] = (), additional: str = ""
    ) -> dict[str, Any]:
        """The reply with `statement`, among those of others; `manifests` are those that were measured."""
        texts = [*(said(nonce=bytes([9, one] * 16).hex()).encode() for one in range(others)), statement.encode()]
        tree = StatementTree([leaf(one) for one in texts])
        return {
            "statement": short(texts[-1]),
            "index": others,
            "size": tree.size,
            "path": [one.hex() for one in tree.path(others)],
            "tee": "tpm",
            "evidence": self.quoted(tree.report_data(additional), manifests),
            **({"additional": short(additional.encode())} if additional else {}),
        }

    def quoted(self, digest: bytes, manifests: tuple[str, ...] = ()) -> Any:
        """A template of the quote over `digest`."""
        log = EventLog(14, tuple(Event(bytes.fromhex(one)) for one in manifests))
        values = [evidence.ZEROS] * 24
        values[14] = log.replay()
        forge = self.quotes.forge.with_(
            nonce=fit_to("tpm", digest), pcrs=tuple(values), event_log=log if manifests else None
        )
        edits = json_edits(self.quotes.whole, forge.evidence())
        return {"$json": self.quotes.base, "edits": edits}

    def case(self, name: str, statements: str, reply: Any, refusals: Any = None, *, form: str = FORM, says: Any = None,
             trust: str | None = None, server: str = SERVER, **given: Any) -> None:  # fmt: skip
        """A case about a reply."""
        given = {"nonce": NONCE.hex(), "spki": SPKI.hex(), "name": server, **given}
        self.book.case(PAGE, name, statements, "reply", refusals, reply=reply, given=given, form=self.form(form),
                       trust=trust or self.trust, time=evidence.NOW, **({"says": says} if says else {}))  # fmt: skip

    def form(self, text: str) -> Any:
        """A source of a caller's policy: the first a file, the others edits of it."""
        base = remember(self.book, "callers.toml", FORM.encode())
        return source(base, text.encode())

    def cases(self) -> None:
        """All of them."""
        whole = self.reply(said(manifests=(MANIFEST,), waivers=("memory",)), manifests=(MANIFEST,))
        says = {"/tpm/manifests": [MANIFEST], "/tpm/enrolled": "certificate"}
        self.case("whole", "SRV-17 SRV-18 SRV-19 SRV-20 SRV-27 SRV-28 SRV-29 SRV-32 SRV-33", whole, says=says)
        self.case("alone", "SRV-11 SRV-20", self.reply(said(), others=0), says={"/tpm/manifests": []})
        self._questions()
        self._paths()
        self._evidence()
        self._manifests()
        self._policy()
        self._collateral()

    def _questions(self) -> None:
        self.case("another-nonce", "SRV-18", self.reply(said(nonce="09" * 32)), ["evidence.nonce"])
        self.case("another-key", "SRV-19", self.reply(said(spki_sha256="03" * 32)), ["evidence.spki"])
        both = self.reply(said(nonce="09" * 32, spki_sha256="03" * 32, waivers=("threads",)))
        self.case(
            "both-and-a-bad-path", "SRV-16", {**both, "index": 9}, ["evidence.nonce", "evidence.path", "evidence.spki"]
        )
        self.case("first-step-ends-it", "SRV-16", {**both, "evidence": 0}, ["evidence.nonce", "evidence.spki"])
        text = said().encode().replace(b",", b", ", 1)
        self.case(
            "statement-in-another-form",
            "SRV-17",
            {**self.reply(said()), "statement": short(text)},
            ["evidence.statement"],
        )

    def _paths(self) -> None:
        good = self.reply(said())
        for name, statement, change in (
            ("index-beyond", "SRV-20", {"index": 3}), ("no-leaves", "SRV-11", {"index": 0, "size": 0, "path": []}),
            ("more-than-65536", "SRV-11", {"size": 65537}), ("path-too-short", "SRV-20", {"path": []}),
            ("path-too-long", "SRV-20", {"path": [*good["path"], "00" * 32]}), ("node-too-short", "SRV-12 SRV-20", {"path": ["00"] * len(good["path"])}),
        ):  # fmt: skip
            self.case(f"path-{name}", statement, {**good, **change}, ["evidence.path"])
        wrong = {"path": ["00" * 32] * len(good["path"])}
        self.case("path-to-another-root", "SRV-10 SRV-27", {**good, **wrong}, ["tpm.quote.nonce"])
        other = {"statement": short(said(waivers=("memory",)).encode())}
        self.case("statement-that-is-not-covered", "SRV-10 SRV-27", {**good, **other}, ["tpm.quote.nonce"])

    def _evidence(self) -> None:
        good = self.reply(said())
        key, nonce = composite.KEY, composite.NONCE
        for_a_broker = self.quoted(report_data(nonce, key))
        self.case("evidence-for-a-broker", "SRV-15 SRV-27", {**good, "evidence": for_a_broker}, ["tpm.quote.nonce"])
        cut = {name: value for name, value in good.items() if name != "evidence"} | {"evidence_text": short(b"{")}
        self.case("evidence-no-json", "SRV-25", cut, ["evidence.json"])
        for name, text in (
            ("a-list", "[]"),
            ("no-kind", "{}"),
            ("nine-kinds", json.dumps({f"kind-{at}": 1 for at in range(9)})),
        ):
            self.case(f"devices-as-{name}", "SRV-26", self.reply(said(), additional=text), ["evidence.additional"])
        self.case("devices-no-json", "SRV-26", self.reply(said(), additional="{"), ["evidence.json"])
        self.case(
            "devices-without-roots", "SRV-27", self.reply(said(), additional='{"nvidia":[]}'), ["composite.kinds"]
        )
        added = {"additional": short(b'{"nvidia":[]}')}
        self.case(
            "devices-added-on-the-way",
            "SRV-14 SRV-27",
            {**good, **added},
            ["composite.bound", "composite.kinds", "tpm.quote.nonce"],
        )
        self.case("nobody-is-believed", "SRV-27", good, ["tpm.ak.chain"], trust="none")
        for name, policies in (
            ("no-profile", SAYS["policies"][1:]),
            ("another-profile", ("profile:test", f"publishers:{PUBLISHERS}")),
            ("publishers-by-name", ("profile:production", "publishers:us")),
        ):
            self.case(f"policies-with-{name}", "SRV-28", self.reply(said(policies=policies)), ["evidence.policies"])

    def _manifests(self) -> None:
        served = said(manifests=(MANIFEST,))
        self.case("unmeasured", "SRV-29", self.reply(served), ["evidence.measured"])
        self.case("another-measured", "SRV-29", self.reply(served, manifests=(ANOTHER,)), ["evidence.measured"])
        self.case("more-measured-than-served", "SRV-29", self.reply(served, manifests=(ANOTHER, MANIFEST)),
                  says={"/tpm/manifests": [ANOTHER, MANIFEST]})  # fmt: skip
        only = FORM.replace('manifest_digest = "any"', f'manifest_digest = ["{ANOTHER}"]')
        measured = self.reply(served, manifests=(MANIFEST,))
        self.case("a-model-that-the-policy-does-not-name", "SRV-31", measured, ["evidence.manifests"], form=only)
        self.case(
            "unmeasured-and-not-named",
            "SRV-16 SRV-29 SRV-31",
            self.reply(served),
            ["evidence.manifests", "evidence.measured"],
            form=only,
        )

    def _policy(self) -> None:
        others = ("profile:production", "publishers:" + "00" * 32)
        self.case("another-server", "SRV-33", self.reply(said()), ["client_certificate"], server="other.example")
        self.case(
            "serving-key-on-a-disk",
            "SRV-32",
            self.reply(said(waivers=("serving_key_from_file",))),
            ["hermetic.waivers"],
        )
        self.case("other-publishers-nothing-wiped", "SRV-32", self.reply(said(policies=others)),
                  ["hermetic.trusted_publishers", "hermetic.zeroing"])  # fmt: skip
        self.case(
            "the-demo",
            "SRV-32",
            self.reply(said(policies=("profile:demo", *SAYS["policies"][1:]))),
            ["hermetic.profile"],
        )

    def _collateral(self) -> None:
        good = self.reply(said())
        accepted, forged = "../collateral/accepted.bundle", "../collateral/item.vouched--forged-vcek.bundle"
        stranger, line = "../collateral/bundle.signature--other-signer.bundle", by_hand.verifier_line()
        self.case(
            "bundles-of-anybody",
            "SRV-21 SRV-23 SRV-24",
            {**good, "collateral": [accepted, stranger]},
            says={"/tpm/software": False},
        )
        self.case("bundle-of-nobody-s-vendor", "SRV-21", {**good, "collateral": [accepted, forged]}, ["item.vouched"])
        self.case(
            "bundle-cut",
            "SRV-21",
            {**good, "collateral": ["../collateral/bundle.contents--truncated.bundle"]},
            ["bundle.contents"],
        )
        self.case("four-bundles", "SRV-22", {**good, "collateral": [accepted] * 4}, says={"/tpm/software": False})
        self.case("five-bundles", "SRV-22", {**good, "collateral": [accepted] * 5}, ["evidence.collateral"])
        self.case(
            "bundle-of-a-signer",
            "SRV-24",
            {**good, "collateral": [accepted]},
            says={"/tpm/software": False},
            signers=[line],
        )
        self.case(
            "bundle-of-a-stranger", "SRV-24", {**good, "collateral": [stranger]}, ["bundle.signature"], signers=[line]
        )


def _beside_devices(book: Book) -> None:
    """A processor without a TPM, and its GPUs."""
    machine = composite.Machine(book, PAGE)
    texts = [said(manifests=(MANIFEST,)).encode()]
    tree = StatementTree([leaf(one) for one in texts])
    devices = machine.devices(tree.device_report_data())
    text = canonical({"nvidia": devices}).decode()
    primary = machine.processor(tree.report_data(text))
    form = machine.file("machine.toml", _form(machine, primary, devices))
    reply = {
        "statement": short(texts[0]), "index": 0, "size": 1, "path": [], "tee": "snp",
        "evidence": machine.written(primary),
        "additional": machine.piece("devices.txt", text.encode()),
    }  # fmt: skip
    given = {"nonce": NONCE.hex(), "spki": SPKI.hex(), "name": SERVER}
    for name, statements, change, refusals in (
        ("processor-and-gpus", "SRV-13 SRV-14 SRV-27 SRV-30", {}, None),
        ("gpus-left-out", "SRV-14 SRV-27", {"additional": {"hex": ""}}, ["snp.report_data"]),
    ):
        says = {"says": {"/snp/vmpl": 0, "/nvgpu/cc_state": "stated"}} if refusals is None else {}
        book.case(PAGE, name, statements, "reply", refusals, reply={**reply, **change}, given=given, form=form,
                  trust=machine.trust, time=NOW, **says)  # fmt: skip
    for_a_broker = machine.made()
    other = {
        "evidence": machine.written(for_a_broker.primary),
        "additional": machine.piece("devices.txt", for_a_broker.text.encode()),
    }
    refused = ["composite.bound", "nvgpu.0.report.nonce", "nvgpu.1.report.nonce", "snp.report_data"]
    book.case(PAGE, "machine-for-a-broker", "SRV-13 SRV-15", "reply", refused, reply={**reply, **other}, given=given,
              form=form, trust=machine.trust, time=NOW)  # fmt: skip


def _form(machine: composite.Machine, primary: Any, devices: Any) -> bytes:
    """A form that accepts the machine, as `hermetic policy propose` writes it, but for what that cannot know."""
    trust = TrustRoots(snp=SnpTrust((machine.amd.authorities(),)), nvgpu=machine.nvidia.trust())
    claims = snp.judge(Checks(), primary, None, trust, NOW)
    form = propose([claims.joined(nvgpu.judge(Checks(), devices, None, trust, NOW))], "machine", ["*"], NOW)
    return re.sub(r"(?m)^#.*\n", "", form).encode()
