"""The measurements, one after the other, on one installation: a real broker, software TPM, server and worker.

1. How long is a whole handshake, from nothing to a key that is usable, with a software TPM?
2. How many handshakes a second does one broker process make? And where its threads share one core?
3. How long do 1,000 callers who ask a server for evidence at once wait, the last one?
4. How long does it take from an operator's revocation until the worker is wiped and gone?
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from jwcrypto import jwe, jwk

from hermetic.attestation.admin_client import AdminClient, ModelKeyFacts
from hermetic.attestation.attesters.tpm import TpmAttester, TpmSettings
from hermetic.attestation.evidence import JsonObject, JsonValue, fit_to, report_data
from hermetic.attestation.exchange import BrokerClient
from hermetic.attestation.governance.alone import sign_key, sign_restore
from hermetic.attestation.lease import LeaseKey
from hermetic.attestation.log import LogReader, NoteVerifier
from hermetic.attestation.operator_settings import OperatorSettings, client_context
from hermetic.attestation.testing.software_tpm import SoftwareTpm, SoftwareTpmCa
from hermetic.bench.attest.guest import QuickQuotes, public_jwk
from hermetic.bench.models import mlp
from hermetic.demo.stage import Installation, Sealable, Served, Serving, install
from hermetic.errors import MeasurementError
from hermetic.protos.hermetic.v1 import attestation_pb2 as pb

STEPS: Final = 5
MODEL: Final = "mlp"
SYNTHETIC: Final = "bench"
"""A key of a model that nobody serves: guests of this bench ask for it."""

DIGEST: Final = b"\x5a" * 32
CALLERS: Final = 8
"""Guests at once, a process each: threads of one process would wait for each other, and be the limit."""

START_TIMEOUT_S: Final = 60
WIPE_TIMEOUT_S: Final = 30
METHOD: Final = "/hermetic.v1.Attestation/GetEvidence"

LIMITS: Final = """
[limits]
sessions = 1000000
sessions_per_client = 1000000
leases_per_client = 65536
requests_per_minute = 10000000
handshakes_per_minute = 1000000
handshakes_per_second = 100000
"""
"""All guests of the bench are one client, which no broker would let do this."""

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured."""

    handshakes: int = 60
    rate_s: float = 10.0
    callers: int = 1000
    revocations: int = 3


def attest(settings: Settings, step: Step = lambda _: None) -> dict[str, Any]:
    """Measure; returns results as JSON can hold them. Raises `MeasurementError`, and what an installation raises."""
    with (
        tempfile.TemporaryDirectory(prefix="hermetic-attest-") as name,
        install(Path(name) / "installation", tee="tpm", prepare=_prepare) as installation,
    ):
        folder = Path(name)
        installation.seal(Sealable(mlp().write(folder / "plain"), MODEL))
        _upload(installation)
        with _attester(folder, installation) as attester, _client(installation) as client:
            step("handshakes, one after the other")
            found: dict[str, Any] = {"handshake": _handshakes(installation, client, attester, settings.handshakes)}
            step("handshakes a second")
            hermetic = _hermetic(client)
            evidence = attester.collect(bytes(32))
        found["rate"] = _rate(folder, installation, evidence, hermetic, settings.rate_s)
        step("handshakes a second, the broker on one core")
        with _one_core(installation.broker.pid):
            found["rate_one_core"] = _rate(folder, installation, evidence, hermetic, settings.rate_s)
        with Serving(installation) as served:
            step("callers that wait for evidence")
            found["callers"] = _callers(served, settings.callers)
            step("revocations")
            found["revocation"] = _revocations(installation, served, settings.revocations)
    return found


def _prepare(folder: Path) -> None:
    """Raise the broker's limits, and let its policy accept this bench's own guests beside the server's workers."""
    broker = folder / "broker"
    with (broker / "broker.toml").open("a") as file:
        file.write(LIMITS)
    policy = broker / "policies" / "default.toml"
    loose = ("trusted_publishers", "waivers", "zeroing")
    lines = (
        f'{line.split(" ")[0]} = "any"' if line.startswith(loose) else line for line in policy.read_text().splitlines()
    )
    policy.write_text("\n".join(lines) + "\n")


def _operator(installation: Installation) -> AdminClient:
    return OperatorSettings.load(installation.folder / "authority" / "operator" / "operator.toml").connect()


def _upload(installation: Installation) -> None:
    with _operator(installation) as operator:
        operator.upload(f"kbs:///{_path()}", os.urandom(32), ModelKeyFacts(SYNTHETIC, 1, DIGEST, "Bench"))
        if installation.sign_as is not None:
            sign_key(operator, _path(), installation.sign_as)


def _path() -> str:
    return f"models/{SYNTHETIC}/1"


def _host_files(installation: Installation) -> tuple[Path, Path, Path]:
    server = installation.folder / "server"
    return server / "services-ca.pem", server / "host.pem", server / "host.key"


def _client(installation: Installation) -> BrokerClient:
    return BrokerClient(f"https://localhost:{_port(installation)}", client_context(*_host_files(installation)))


def _port(installation: Installation) -> int:
    text = (installation.folder / "server" / "server.toml").read_text()
    return int(text.partition("https://localhost:")[2].partition('"')[0])


@contextlib.contextmanager
def _attester(folder: Path, installation: Installation) -> Iterator[TpmAttester]:
    """A TPM of the same maker as the server's, enrolled, with the synthetic manifest measured."""
    tpm = SoftwareTpm.manufacture(folder / "tpm", SoftwareTpmCa(installation.folder / "tpm-ca"))
    with tpm, TpmAttester(TpmSettings(tpm.tcti, log=folder / "measured", boot_log=None)) as attester:
        with _client(installation) as client:
            attester.accept_certificate(client.enrol_ak(attester.enrolment_request(), attester.enrolment_answer))
        attester.extend(DIGEST)
        yield attester


def _hermetic(client: BrokerClient) -> dict[str, Any]:
    return {
        "profile": "demo",
        "purpose": "model",
        "manifest-digest": DIGEST.hex(),
        "waivers": [],
        "trusted-publishers": "0" * 64,
        "policies": [],
        "zeroing": "enforced",
        "lease-key": LeaseKey.loads(client.lease_key() or "").digest,
    }


def _handshakes(installation: Installation, client: BrokerClient, attester: TpmAttester, count: int) -> dict[str, Any]:
    """Each from a new connection to the opened key; `quote_ms` is what of it the TPM takes."""
    hermetic, context = _hermetic(client), client_context(*_host_files(installation))
    whole, quote = list[float](), list[float]()
    for _ in range(count + 1):
        began = time.perf_counter()
        with BrokerClient(f"https://localhost:{_port(installation)}", context) as fresh:
            quote.append(_handshake(fresh, attester, hermetic))
        whole.append(1000 * (time.perf_counter() - began))
    return {"count": count, **_spread(whole[1:]), "quote_ms": round(statistics.median(quote[1:]), 2)}


def _handshake(client: BrokerClient, attester: TpmAttester, hermetic: JsonObject) -> float:
    """One handshake; returns what the quote took, in ms."""
    challenge = client.challenge("tpm")
    key = ec.generate_private_key(ec.SECP256R1())
    public = public_jwk(key)
    binding = fit_to("tpm", report_data(challenge.nonce, public, additional_evidence="", hermetic=hermetic))
    began = time.perf_counter()
    evidence = attester.collect(binding)
    took = 1000 * (time.perf_counter() - began)
    client.attest(challenge, public, evidence, hermetic)
    message = jwe.JWE()
    message.deserialize(client.resource(f"kbs:///{_path()}").decode(), jwk.JWK.from_pyca(key))
    if len(message.payload) != 32:  # noqa: PLR2004 - a model key
        raise MeasurementError(f"key: wanted 32 bytes, got {len(message.payload)}")
    return took


def _rate(
    folder: Path,
    installation: Installation,
    evidence: JsonValue,
    hermetic: JsonObject,
    seconds: float,
) -> dict[str, Any]:
    """Handshakes of several processes at once; `broker_cpu_ms` is what one costs the broker's process."""
    authority, certificate, key = map(str, _host_files(installation))
    facts = folder / "caller.json"
    quotes = QuickQuotes.like(cast(Mapping[str, Any], evidence), installation.folder / "broker")
    facts.write_text(
        json.dumps(
            {"port": _port(installation), "ca": authority, "certificate": certificate, "tls_key": key,
             "quotes": quotes.to_json(), "hermetic": hermetic, "path": _path(), "seconds": seconds}
        )
    )  # fmt: skip
    command = [sys.executable, "-m", "hermetic.bench.attest.caller", str(facts)]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as undo:
        callers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(CALLERS)]
        for caller in callers:
            undo.enter_context(caller)
            undo.callback(caller.kill)
        for caller in callers:
            if caller.stdout is None or caller.stdout.readline() != "ready\n":
                raise MeasurementError("caller: wanted one that is ready, got one that ended")
        cpu, began = _cpu_s(installation.broker.pid), time.monotonic()
        for caller in callers:
            if caller.stdin is not None:
                caller.stdin.write("go\n")
                caller.stdin.flush()
        made = sum(int(caller.communicate(timeout=seconds + START_TIMEOUT_S)[0]) for caller in callers)
        took = time.monotonic() - began
        spent = _cpu_s(installation.broker.pid) - cpu
    return {"per_second": round(made / took, 1), "seconds": round(took, 2), "handshakes": made,
            "broker_cpu_ms": round(1000 * spent / made, 2), "broker_cores": round(spent / took, 2)}  # fmt: skip


@contextlib.contextmanager
def _one_core(pid: int) -> Iterator[None]:
    """The broker's threads on one core, its guests on the others, where there are others: as `CPUAffinity=` has it."""
    cores = os.sched_getaffinity(0)
    first = {min(cores)}
    _place(pid, first)
    os.sched_setaffinity(0, cores - first or first)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        _place(pid, cores)


def _place(pid: int, cores: set[int]) -> None:
    """Threads that are started later are where those are that start them."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), cores)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _callers(served: Served, count: int) -> dict[str, Any]:
    """All ask at once over one connection each eighth; the last answer counts."""
    files = (served.ca_file, served.key_file, served.certificate_file)
    credentials = grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    channels = [grpc.secure_channel(served.address, credentials, options) for _ in range(CONNECTIONS)]
    try:
        asks = [
            channel.unary_unary(METHOD, pb.GetEvidenceRequest.SerializeToString, lambda data: data)
            for channel in channels
        ]
        for ask in asks:
            ask(pb.GetEvidenceRequest(nonce=os.urandom(32)), timeout=START_TIMEOUT_S)
        began = time.perf_counter()
        waiting = [
            asks[n % CONNECTIONS].future(pb.GetEvidenceRequest(nonce=os.urandom(32)), timeout=START_TIMEOUT_S)
            for n in range(count)
        ]
        times: list[float] = []
        replies = []
        for one in waiting:
            replies.append(one.result())
            times.append(1000 * (time.perf_counter() - began))
    except grpc.RpcError as error:
        raise MeasurementError(f"callers: wanted evidence, got {error}") from None
    finally:
        for channel in channels:
            channel.close()
    quotes = {pb.GetEvidenceResponse.FromString(reply).evidence for reply in replies}
    return {"callers": count, "connections": CONNECTIONS, "last_ms": round(max(times), 1), "quotes": len(quotes)}


CONNECTIONS: Final = 8


def _revocations(installation: Installation, served: Served, count: int) -> dict[str, Any]:
    """From the moment in which the operator sends it until the worker's process is gone, which wipes before."""
    times = []
    for _ in range(count):
        pid = _worker(installation)
        with _operator(installation) as operator:
            began = time.perf_counter()
            if not operator.revoke_leases({"model": MODEL}, "bench attest"):
                raise MeasurementError(f"{MODEL}: wanted a lease to revoke, got none")
        _wait_gone(pid)
        times.append(1000 * (time.perf_counter() - began))
        _load_again(installation, served)
    return {"count": count, **_spread(times)}


def _wait_gone(pid: int) -> None:
    end = time.monotonic() + WIPE_TIMEOUT_S
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > end:
            raise MeasurementError(f"worker {pid}: wanted its end within {WIPE_TIMEOUT_S} s, got none")
        time.sleep(0.001)


def _worker(installation: Installation) -> int:
    """The process that has loaded the model last, as the server's log says."""
    folder = installation.folder / "server"
    log = LogReader(folder / "log", NoteVerifier.parse((folder / "log.pub").read_text()))
    pids = [record.fields["pid"] for record in log.records() if record.kind == "model.loaded"]
    return int(pids[-1])


def _load_again(installation: Installation, served: Served) -> None:
    if installation.sign_as is None:
        raise MeasurementError("expected an installation where one signature is enough")
    with _operator(installation) as operator:
        sign_restore(operator, {"model": MODEL}, "bench attest", installation.sign_as)
    client = served.client(operator=True)
    try:
        client.load_model(MODEL)
    finally:
        client.close()


def _spread(values: list[float]) -> Mapping[str, float]:
    ordered = sorted(values)
    return {
        "median_ms": round(statistics.median(ordered), 2),
        "p99_ms": round(ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))], 2),
        "most_ms": round(ordered[-1], 2),
    }
