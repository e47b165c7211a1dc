"""What convinces a caller, and what does not: one forged thing at a time, with a real TPM's quotes."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from hermetic.attestation import evidence, verifiers
from hermetic.attestation.attesters.tpm import TpmAttester
from hermetic.attestation.claims import Claims
from hermetic.attestation.evidence import JsonValue, fit_to
from hermetic.attestation.policy import AppraisalPolicy
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.server_evidence import Statement, StatementTree, device_report_data, leaf
from hermetic.attestation.testing.sample import SampleAttester
from hermetic.attestation.verifiers import composite
from hermetic.client.judgement import Proof, verify_reply
from hermetic.client.policy import CallerPolicy
from hermetic.errors import AppraisalError, EvidenceError, VerificationError
from hermetic.protos.hermetic.v1 import attestation_pb2 as pb
from tests.client.callers_form import callers_form
from tests.flows.attacks import ATTACKS

NONCE, SPKI = b"\1" * 32, b"\2" * 32
MANIFEST = "ab" * 32
PUBLISHERS = "cd" * 32
KEY: dict[str, JsonValue] = {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "eA", "y": "eQ"}
SERVER = "server.example"
POLICY = callers_form("demo", server=SERVER, publishers=PUBLISHERS)


class Server:
    """What a server does, in one process."""

    def __init__(self, attester: TpmAttester, trust: TrustRoots, now: datetime) -> None:
        self._attester = attester
        self.trust = trust
        self.now = now
        self.policy = CallerPolicy(AppraisalPolicy.load(POLICY), trust)

    def statement(self, nonce: bytes = NONCE, **changes: Any) -> Statement:
        values: dict[str, Any] = {
            "nonce": nonce.hex(),
            "spki_sha256": SPKI.hex(),
            "manifests": (),
            "policies": ("profile:demo", f"publishers:{PUBLISHERS}", "zeroing:enforced"),
            "waivers": (),
            "log_head": "1:" + "ee" * 32,
        }
        return Statement(**{**values, **changes})

    def reply(
        self, statement: Statement, others: int = 2, devices: Callable[[StatementTree], str] = lambda _: ""
    ) -> pb.GetEvidenceResponse:
        """Evidence for a statement among others; `devices` gives the text of what the machine says of its devices."""
        texts = [*(self.statement(bytes([9, one]) * 16).encode() for one in range(others)), statement.encode()]
        tree = StatementTree([leaf(one) for one in texts])
        additional = devices(tree)
        made = self._attester.collect(fit_to("tpm", tree.report_data(additional)))
        return pb.GetEvidenceResponse(
            statement=texts[-1],
            index=others,
            size=tree.size,
            path=tree.path(others),
            tee="tpm",
            evidence=json.dumps(made).encode(),
            additional_evidence=additional,
        )

    def broker_evidence(self) -> bytes:
        """What this machine answers a key broker's challenge with."""
        return json.dumps(self._attester.collect(fit_to("tpm", evidence.report_data("bm9uY2U=", KEY)))).encode()

    def extend(self, manifest: str) -> None:
        self._attester.extend(bytes.fromhex(manifest))

    def judge(self, reply: pb.GetEvidenceResponse, policy: CallerPolicy | None = None) -> Proof:
        return verify_reply(reply, NONCE, SPKI, SERVER, policy or self.policy, self.now)


@pytest.fixture
def server(enrolled: TpmAttester, trust: TrustRoots, now: datetime) -> Server:
    return Server(enrolled, trust, now)


def failures(call: Callable[[], object], kind: type[EvidenceError]) -> list[str]:
    with pytest.raises(kind) as caught:
        call()
    return [one.name for one in caught.value.failures]


def test_a_genuine_reply_is_a_proof(server: Server) -> None:
    server.extend(MANIFEST)
    proof = server.judge(server.reply(server.statement(manifests=(MANIFEST,), waivers=("memory",))))
    assert proof.claims.hermetic is not None
    assert proof.claims.hermetic.trusted_publishers == PUBLISHERS
    assert proof.claims.client == SERVER
    assert json.loads(json.dumps(proof.to_json()))["statement"]["manifests"] == [MANIFEST]
    assert "isolation waived" in proof.warnings


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nonce": "09" * 32}, ["evidence.nonce"]),
        ({"spki_sha256": "03" * 32}, ["evidence.spki"]),
        ({"nonce": "09" * 32, "spki_sha256": "03" * 32}, ["evidence.nonce", "evidence.spki"]),
    ],
    ids=["another nonce", "another key", "both"],
)
def test_evidence_for_another_question_or_key(server: Server, change: dict[str, str], named: list[str]) -> None:
    reply = server.reply(server.statement().model_copy(update=change))
    assert failures(lambda: server.judge(reply), VerificationError) == named


@pytest.mark.parametrize("member", ["statement", "index", "path", "size"])
def test_a_statement_that_the_evidence_does_not_cover(server: Server, member: str) -> None:
    reply = server.reply(server.statement())
    changes: dict[str, dict[str, Any]] = {
        "statement": {"statement": server.statement(waivers=("memory",)).encode()},
        "index": {"index": 1, "path": [*reply.path, b"\0" * 32]},
        "path": {"path": [b"\0" * 32 for _ in reply.path]},
        "size": {"size": reply.size + 1, "path": list(reply.path)},
    }
    forged = changes[member]
    fields: dict[str, Any] = {name.name: value for name, value in reply.ListFields()}
    named = failures(lambda: server.judge(pb.GetEvidenceResponse(**{**fields, **forged})), VerificationError)
    assert named in (["tpm.quote.nonce"], ["evidence.path"])


def test_a_path_of_no_such_tree(server: Server) -> None:
    reply = server.reply(server.statement())
    reply.index = 1 << 40
    assert failures(lambda: server.judge(reply), VerificationError) == ["evidence.path"]


def test_broker_evidence_offered_to_a_caller(server: Server) -> None:
    reply = server.reply(server.statement())
    reply.evidence = server.broker_evidence()
    assert failures(lambda: server.judge(reply), VerificationError) == list(ATTACKS["broker-to-caller"].by)


def test_callers_evidence_offered_to_a_broker(server: Server) -> None:
    """Whatever the broker's challenge is, also where it was what the caller asked with."""
    reply = server.reply(server.statement(), others=0)
    for challenge in ("bm9uY2U=", NONCE.hex()):
        digest = evidence.report_data(challenge, KEY)
        named = failures(
            lambda digest=digest: verifiers.verify(  # type: ignore[misc]
                "tpm", json.loads(reply.evidence), digest, server.trust, server.now
            ),
            VerificationError,
        )
        assert named == list(ATTACKS["caller-to-broker"].by)


def test_devices_that_are_added_or_left_out(server: Server) -> None:
    reply = server.reply(server.statement())
    reply.additional_evidence = '{"sample":{}}'
    assert "tpm.quote.nonce" in failures(lambda: server.judge(reply), VerificationError)


def test_another_machine_that_is_passed_off_as_a_device(server: Server) -> None:
    """Two genuine pieces of two machines would make one that does not exist: of each what the policy wants."""

    def devices(tree: StatementTree) -> str:
        return json.dumps({"sample": SampleAttester().collect(device_report_data(tree.root, tree.size))})

    form = server.policy.appraisal
    policy = CallerPolicy(form.model_copy(update={"kinds": ("tpm", "sample")}), server.trust)
    reply = server.reply(server.statement(), devices=devices)
    assert failures(lambda: server.judge(reply, policy), VerificationError) == ["composite.kinds"]


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff"])
def test_evidence_that_is_no_json(server: Server, text: bytes) -> None:
    reply = server.reply(server.statement())
    reply.evidence = text
    assert failures(lambda: server.judge(reply), VerificationError) == ["evidence.json"]


def test_a_model_that_was_never_measured(server: Server) -> None:
    reply = server.reply(server.statement(manifests=(MANIFEST,)))
    assert failures(lambda: server.judge(reply), AppraisalError) == list(ATTACKS["unmeasured"].by)


def test_a_model_that_the_policy_does_not_name(server: Server) -> None:
    server.extend(MANIFEST)
    form = server.policy.appraisal
    only = form.hermetic.model_copy(update={"manifest_digest": ("ff" * 32,)})
    policy = CallerPolicy(form.model_copy(update={"hermetic": only}), server.trust)
    reply = server.reply(server.statement(manifests=(MANIFEST,)))
    assert failures(lambda: server.judge(reply, policy), AppraisalError) == list(ATTACKS["models"].by)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"waivers": ("serving_key_from_file",)}, ["hermetic.waivers"]),
        (
            {"policies": ("profile:demo", "publishers:" + "00" * 32)},
            ["hermetic.trusted_publishers", "hermetic.zeroing"],
        ),
    ],
    ids=["a serving key on a disk", "other publishers, memory not overwritten"],
)
def test_a_server_that_the_policy_does_not_accept(server: Server, change: dict[str, Any], named: list[str]) -> None:
    reply = server.reply(server.statement(**change))
    assert failures(lambda: server.judge(reply), AppraisalError) == named


def test_policies_that_do_not_say_which_profile(server: Server) -> None:
    reply = server.reply(server.statement(policies=()))
    assert failures(lambda: server.judge(reply), VerificationError) == ["evidence.policies"]


def test_a_processor_that_vouches_for_its_vtpm_has_no_log_of_manifests(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure's kinds: the report data covers the statement, and with it the manifests. Any other TPM has a log."""
    policy = CallerPolicy(
        AppraisalPolicy.load(POLICY.replace("provisioned_ak = false", "provisioned_ak = true")), server.trust
    )
    reply = server.reply(server.statement(manifests=(MANIFEST,)))
    assert failures(lambda: server.judge(reply, policy), AppraisalError) == ["evidence.measured"]
    real = composite.verify

    def beside_a_processor(*arguments: Any) -> tuple[Claims, ...]:
        (claims,) = real(*arguments)
        assert claims.tpm is not None
        vtpm = {"enrolled": "hardware-report", "log_pcr": None, "log_base": None, "manifests": ()}
        return (claims.model_copy(update={"kinds": (claims.tpm.model_copy(update=vtpm),)}),)

    monkeypatch.setattr(composite, "verify", beside_a_processor)
    assert server.judge(reply, policy).statement.manifests == (MANIFEST,)
