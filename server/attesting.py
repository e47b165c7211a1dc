"""Attest to the key broker, and bring back what only the attested key can open.

The supervisor is the sole owner of the TPM, the event log and the broker connection. The order is the specification's
(docs/spec/key-broker.md), numbered here:

1. the worker is locked down, and the public half of the key pair that it made is known (loading.py);
2. challenge: the broker gives a nonce, and says whether it takes our additions to the runtime data, a hybrid key too;
3. the manifest digest is extended into the measurement register, before the key is asked for;
4. evidence over the nonce, the public key and the runtime claims: the devices' first, then the primary's, over theirs;
5. attest, and ask for the resource: a JWE that only the worker opens, wrapped to its hybrid key where that was attested
   (docs/spec/post-quantum.md); or, for another lease, for that.

Steps 2 to 5 are serialised: extend, quote and log snapshot belong together, and a session is one at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from joserfc.jwk import ECKey

from hermetic.attestation.attesters.composite import CompositeAttester, CompositeEvidence
from hermetic.attestation.evidence import JsonValue, device_report_data, fit_to, report_data
from hermetic.attestation.exchange import BrokerClient
from hermetic.attestation.gpu_identity import GpuFacts, check_gpu, gpus_in
from hermetic.attestation.hybrid_key import KeyWrap, is_hybrid
from hermetic.attestation.lease import LeaseKey
from hermetic.attestation.server_evidence import StatementTree
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.manifest import Manifest
from hermetic.errors import BrokerRefusedError
from hermetic.server.broker_log import BrokerLog

KEY_AGREEMENT: Final = "ECDH-ES+A256KW"

HostClaims = Callable[[], dict[str, JsonValue]]
"""Gives what every `runtime-data.hermetic` of this host holds at this moment: profile, policies, log head."""


@dataclass(frozen=True, slots=True)
class Release:
    """A released model key, wrapped to the worker's key, and what came with it from our broker, not from Trustee.

    `checkpoint` is the broker's, signed (None: none); `lease` is for the worker (empty: none). `gpu`: what the evidence
    said of the GPU under it (None: it has none, or the evidence has no GPUs).
    """

    jwe: bytes
    token: str
    checkpoint: bytes | None
    lease: str = ""
    gpu: GpuFacts | None = None


@dataclass(frozen=True, slots=True)
class Renewal:
    """Another lease, for the worker, and the broker's signed checkpoint that came with it (None: none)."""

    lease: str
    checkpoint: bytes | None


@dataclass(frozen=True, slots=True)
class Applicant:
    """A worker that is attested for: its public key (a JWK), what it holds, whose leases it obeys ("": nobody's).

    `hybrid_key` is the public half of its other key, base64url; empty where it has none. `gpu`: the UUID of the GPU
    under it, "": none; `gpu_at_load`: what evidence said of that when it was loaded, None: it is being loaded.
    """

    key: Mapping[str, str]
    report: LockdownReport
    lease_key: str = ""
    hybrid_key: str = ""
    gpu: str = ""
    gpu_at_load: GpuFacts | None = None


@dataclass(frozen=True, slots=True)
class _Session:
    """An attested session: its token, whether a hybrid key was attested in it, and what evidence says of a GPU."""

    token: str
    is_hybrid: bool
    gpu: GpuFacts | None


class Attesting:
    """This host's standing with its broker. Thread-safe."""

    def __init__(
        self, attester: CompositeAttester, broker: BrokerClient, host_claims: HostClaims, key_wrap: KeyWrap = "any"
    ) -> None:
        """Keep them; the broker's connection is used by one thread at a time, for a whole session.

        `key_wrap`: `hybrid` attests to no broker that would wrap a model's key otherwise.
        """
        self.key_wrap: Final = key_wrap
        self._attester = attester
        self._broker = broker
        self._host_claims = host_claims
        self._log = BrokerLog()
        self.gpus: tuple[GpuFacts, ...] = ()
        """This host's GPUs as the last evidence for the broker has them; none where that could not be made."""
        self.on_log_fault: Callable[[str], None] = lambda _: None
        """Hears, in whatever thread it is, that the broker's log is not what it was."""

    def lease_key(self) -> str:
        """Return the key that signs the broker's leases (a JWK), which a worker is told before its lock-down.

        Empty: the broker offers no leases. Evidence says which key it is, and the broker releases nothing to a worker
        that was told of another. Raises as `release_key`.
        """
        with self._broker.turn:
            return self._broker.lease_key() or ""

    def release_key(self, manifest: Manifest, worker: Applicant, *, measured: bool = True) -> Release:
        """Return the model's key, wrapped to the worker's key. `measured`: the manifest is extended first.

        Raises `BrokerRefusedError` (final), `GpuChangedError` (final too) or `BrokerUnreachableError`.
        """
        digest = manifest.digest()
        with self._broker.turn:
            session = self._attest(
                worker.key, _claims(digest, worker), measured=digest if measured else None, worker=worker
            )
            jwe = self._broker.resource(manifest.key_id)
            self._look_at_log()
            if session.is_hybrid and not is_hybrid(jwe):
                raise BrokerRefusedError("key: expected one wrapped to the hybrid key that was attested, got another")
            return Release(jwe, session.token, self._broker.last_checkpoint, self._broker.last_lease, session.gpu)

    def renew_lease(self, manifest: Manifest, worker: Applicant) -> Renewal:
        """Return another lease for the worker's new key, against fresh evidence. Raises as `release_key`.

        The manifest was measured in this boot already: that stands in the evidence.
        """
        with self._broker.turn:
            self._attest(worker.key, _claims(manifest.digest(), worker), measured=None, worker=worker)
            lease = self._broker.renew_lease(manifest.key_id)
            self._look_at_log()
            return Renewal(lease, self._broker.last_checkpoint)

    def certify_serving_key(self, key: ec.EllipticCurvePrivateKey, csr: bytes) -> bytes:
        """Return a certificate chain (PEM) for the serving key: evidence binds the very key that the CSR is for."""
        jwk = ECKey.import_key(key.public_key()).as_dict(private=False)
        public: dict[str, str] = {name: str(jwk[name]) for name in ("kty", "crv", "x", "y")}
        with self._broker.turn:
            self._attest({**public, "alg": KEY_AGREEMENT}, {"purpose": "serving-key"}, measured=None)
            return self._broker.certify_serving_key(csr)

    def evidence(self, tree: StatementTree) -> tuple[str, CompositeEvidence]:
        """Return evidence for callers over a tree's root: the primary's kind, and what the whole host has made.

        No session at the broker is waited for: callers are answered while it is away. Raises what an attester raises,
        and what the broker does where there is no enrolment, and one is due.
        """
        return self._attester.tee, self._attester.collect(tree.device_report_data(), tree.report_data)

    def _look_at_log(self) -> None:
        """Look at the checkpoint that came last; the caller holds the lock."""
        if fault := self._log.look(self._broker.last_checkpoint):
            self.on_log_fault(fault)

    def _attest(
        self,
        public_key: Mapping[str, str],
        claims: Mapping[str, JsonValue],
        measured: bytes | None,
        *,
        worker: Applicant | None = None,
    ) -> "_Session":
        """Run steps 2 to 5 up to the token; the caller holds the lock. `worker`: None where no key is asked for."""
        hybrid = None if worker is None else worker.hybrid_key
        challenge = self._broker.challenge(self._attester.tee)
        wraps_hybrid = bool(hybrid) and challenge.offers_hybrid
        if wraps_hybrid:
            claims = {**claims, "hybrid-key": hybrid}
        elif hybrid is not None and self.key_wrap == "hybrid":
            # Before the manifest is measured, and before anything that could be wrapped otherwise is attested.
            raise BrokerRefusedError(
                "challenge: expected an offer of hybrid key wraps, which this server demands, got none"
            )
        if measured is not None:
            self._attester.extend(measured)
        hermetic = _with(self._host_claims(), claims) if challenge.knows_hermetic else None
        nonce, key = challenge.nonce, dict(public_key)
        device_digest, self.gpus = device_report_data(nonce, key), ()
        made = self._attester.collect(
            device_digest,
            lambda additional: report_data(nonce, key, additional_evidence=additional, hermetic=hermetic),
        )
        self.gpus = gpus_in(made.additional, fit_to("nvidia", device_digest))
        watched = worker is not None and worker.gpu and self.gpus
        gpu = check_gpu(worker.gpu, worker.gpu_at_load, self.gpus) if worker is not None and watched else None
        token = self._broker.attest(challenge, key, made.primary, hermetic, additional_evidence=made.additional)
        return _Session(token, wraps_hybrid, gpu)


def _claims(manifest_digest: bytes, worker: Applicant) -> dict[str, JsonValue]:
    """What is said of a worker beside what holds for the whole host."""
    report = worker.report
    leases: dict[str, JsonValue] = {"lease-key": LeaseKey.loads(worker.lease_key).digest} if worker.lease_key else {}
    return {
        "purpose": "model",
        "manifest-digest": manifest_digest.hex(),
        "waivers": sorted(report.waived),
        "zeroing": report.zeroing,
        "zeroing-by": report.zeroing_by,
        **leases,
    }


def _with(host: Mapping[str, JsonValue], own: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The host's claims and those of one attestation. What either goes without, the whole goes without."""
    waived = {str(name) for claims in (host, own) for name in _list(claims.get("waivers"))}
    return {**host, **own, "waivers": [*sorted(waived)]}


def _list(value: JsonValue) -> Sequence[JsonValue]:
    return value if isinstance(value, list | tuple) else ()
