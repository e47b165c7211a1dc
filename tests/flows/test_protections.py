"""What stands between a stranger and a model: the doors of the front end, and the rooms of the locked processes."""

import os
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from tritonclient.utils import InferenceServerException

from hermetic import compiled
from hermetic.enclave.isolation import cgroup
from hermetic.enclave.zero_on_free_library import LIBRARY
from hermetic.provision.authority import new_key
from hermetic.provision.layout import load_authority
from hermetic.provision.names import ROLES, spiffe
from tests.flows.networks import Network, dense
from tests.flows.scene import Client, Running, Scene, check_answers, scene, serving_certificate
from tests.flows.sockets import tcp_sockets

WORKER, FRONT_END = "hermetic.enclave.worker", "hermetic.server.frontend"
STRANGER = "spiffe://hermetic.demo/client/stranger"


@dataclass(frozen=True, slots=True)
class House:
    """A server of one model."""

    scene: Scene
    network: Network
    served: Running


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with scene("sample") as place:
        network = dense(place.workshop, "dense", seed=6)
        with place.serve([place.seal(network)]) as served:
            yield House(place, network, served)


# ---------------------------------------------------------------------------------------------------------------- doors


@dataclass(frozen=True, slots=True)
class Papers:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path

    def client(self, served: Running) -> Client:
        return Client(
            served.address,
            ssl=True,
            root_certificates=str(served.ca_file),
            private_key=str(self.key),
            certificate_chain=str(self.certificate),
        )


def shake_hands(house: House, papers: Papers | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> str | None:
    """Open a TLS connection as far as the first byte of HTTP/2; returns the version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(house.served.ca_file)
    context.set_alpn_protocols(["h2"])
    if papers is not None:
        context.load_cert_chain(papers.certificate, papers.key)
    with (
        socket.create_connection(("127.0.0.1", house.served.port), 60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as channel,
    ):
        channel.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        if not channel.recv(1):
            raise ConnectionResetError("closed")
        return channel.version()


@pytest.fixture
def known(house: House) -> Papers:
    return Papers(house.served.certificate_file, house.served.key_file)


def test_who_has_the_papers_comes_in(house: House, known: Papers) -> None:
    assert shake_hands(house, known) == "TLSv1.3"
    with house.served.client() as client:
        check_answers(client, house.network)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that TLS 1.2 is old is the point
def test_tls_1_2_is_refused(house: House, known: Papers) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake_hands(house, known, ssl.TLSVersion.TLSv1_2)


def test_no_client_certificate_is_refused(house: House) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake_hands(house, None)


def test_a_certificate_of_another_ca_is_refused(house: House) -> None:
    """The host's own certificate opens the broker's door, not the server's."""
    papers = Papers(house.scene.folder / "server" / "host.pem", house.scene.folder / "server" / "host.key")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake_hands(house, papers)
    with papers.client(house.served) as client, pytest.raises(InferenceServerException) as caught:
        client.is_server_live()
    assert str(caught.value.status()) == "StatusCode.UNAVAILABLE"


def papers_for(house: House, authority: str, name: str) -> Papers:
    """A good certificate of one of the installation's CAs, under another name."""
    key, role = new_key(), ROLES["client"]
    issuer = load_authority(house.scene.folder / "authority", authority)
    certificate = issuer.issue(role.leaf_of([x509.UniformResourceIdentifier(name)]), key.public_key())
    papers = Papers(house.scene.workshop / "papers.pem", house.scene.workshop / "papers.key")
    papers.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    papers.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return papers


def test_an_identity_that_is_not_listed_is_refused(house: House) -> None:
    with papers_for(house, "clients-ca", STRANGER).client(house.served) as client:
        for ask in (client.is_server_live, lambda: check_answers(client, house.network)):
            with pytest.raises(InferenceServerException) as caught:
                ask()
            assert str(caught.value.status()) == "StatusCode.PERMISSION_DENIED"


def test_a_listed_name_of_another_ca_is_another_identity(house: House) -> None:
    """Who signs clients' certificates cannot make itself an operator: identities are pairs of CA and name."""
    operator = spiffe("hermetic.demo", "operator", "first")
    with papers_for(house, "clients-ca", operator).client(house.served) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.unload_model("dense")
        assert str(caught.value.status()) == "StatusCode.PERMISSION_DENIED"


# ---------------------------------------------------------------------------------------------------------- serving key


def private_keys_below(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every private key in PEM or DER below a folder: the file, and the public half."""
    for path in folder.rglob("*"):
        if path.is_file():
            for load in (serialization.load_pem_private_key, serialization.load_der_private_key):
                try:
                    key = load(path.read_bytes(), password=None)
                except (ValueError, TypeError):
                    continue
                yield path, spki_of(key.public_key())


def spki_of(key: object) -> bytes:
    spki: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return spki


def test_the_serving_key_is_not_on_disk(house: House) -> None:
    """That a restarted server has another one: test_seal_to_answer.py."""
    on_disk = dict(private_keys_below(house.scene.folder))
    host = x509.load_pem_x509_certificate((house.scene.folder / "server" / "host.pem").read_bytes())
    assert spki_of(host.public_key()) in on_disk.values(), "the search's positive control"
    assert spki_of(serving_certificate(house.served).public_key()) not in on_disk.values()


# ---------------------------------------------------------------------------------------------------------------- rooms


@pytest.mark.skipif(os.geteuid() != 0, reason="only root looks at the memory of a locked process")
def test_front_end_and_worker_run_what_was_compiled_of_this_source(house: House) -> None:
    """And the source, where nothing was: the suite's header says which of the two is tested."""
    for name in (FRONT_END, WORKER):
        (pid,) = house.served.children(name)
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert ("__mypyc" in maps) == (not compiled.REQUESTS.why_not()), name


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def locked(house: House) -> list[int]:
    pids = [*house.served.children(FRONT_END), *house.served.children(WORKER)]
    assert len(pids) == 2
    return pids


def test_locked_processes_have_no_privilege(house: House) -> None:
    for pid in locked(house):
        status = status_of(pid)
        assert status["Seccomp"] == "2", status
        assert status["NoNewPrivs"] == "1", status
        # What could be gained by starting a program: only root can empty that set, and no program is started here.
        bounds = ("Bnd",) if os.geteuid() == 0 else ()
        assert {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Amb", *bounds)} == {"0" * 16}, status


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives processes a uid of their own")
def test_every_locked_process_has_a_uid_of_its_own(house: House) -> None:
    uids = [set(status_of(pid)["Uid"].split()) for pid in locked(house)]
    assert all(len(uid) == 1 for uid in uids), "real, effective, saved and file system uid are one"
    assert len(set.union(*uids)) == len(uids)
    assert "0" not in set.union(*uids)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees the root of another process")
def test_locked_processes_see_no_file(house: House) -> None:
    for record in house.scene.records("server"):
        if record.kind in ("front-end.listening", "model.loaded"):
            pid, report = record.fields["pid"], record.fields["lock-down"]
            assert "no-files" in report["properties"], report
            if "empty-root" in report["properties"]["no-files"]:
                assert list(Path(f"/proc/{pid}/root/").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root looks at the memory of a locked process")
def test_no_memory_of_a_locked_process_is_writable_and_executable(house: House) -> None:
    """But one page of a front end, where the binding of OpenSSL keeps its callback (LIMITATIONS.md)."""
    for pid in locked(house):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        assert any("x" in line.split()[1] for line in lines), "the search's positive control"
        both = [line for line in lines if {*"wx"} <= {*line.split()[1]}]
        assert len(both) <= (pid in house.served.children(FRONT_END)), both


@pytest.mark.skipif(os.geteuid() != 0, reason="only root looks at the descriptors of a locked process")
def test_a_locked_process_has_no_descriptor_of_a_file_a_folder_or_a_terminal(house: House) -> None:
    """Neither namespaces, Landlock nor a filter look at what is open already: sockets, pipes and memory of ours are."""
    ours = re.compile(r"socket:.*|pipe:.*|anon_inode:\[(eventpoll|eventfd|timerfd)\]|/memfd:hermetic-.*|/dev/null")
    for pid in locked(house):
        opened = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        assert any(name.startswith("socket:") for name in opened), "the search's positive control"
        assert [name for name in opened if not ours.fullmatch(name)] == []


def test_locked_processes_leave_no_core_and_a_front_end_has_one_thread(house: House) -> None:
    for pid in locked(house):
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        (core,) = [line.split()[-3:-1] for line in limits if line.startswith("Max core file size")]
        assert core == ["1", "1"]
    (front_end,) = house.served.children(FRONT_END)
    assert status_of(front_end)["Threads"] == "1"


def test_the_reports_say_what_bounds_memory_and_each_process_has_a_group_of_its_own(house: House) -> None:
    records = house.scene.records("server")
    reports = {record.fields["pid"]: record.fields["lock-down"] for record in records if "lock-down" in record.fields}
    bounds = {pid: reports[pid]["memory_bounds"] for pid in locked(house)}
    assert all(bound[-1].startswith("rlimit: ") for bound in bounds.values())
    try:
        version = cgroup.delegation()
    except OSError:
        assert all(len(bound) == 1 for bound in bounds.values())
        return
    groups = {pid: Path(f"/proc/{pid}/cgroup").read_text() for pid in bounds}
    assert len(set(groups.values())) == len(groups)
    for pid, bound in bounds.items():
        assert bound[0].startswith(f"cgroup {version}: ")
        assert f"/hermetic-{status_of(pid)['PPid']}-" in groups[pid]


def test_every_process_overwrites_what_it_frees_and_all_say_by_what(house: House) -> None:
    """The same in each process, as it found out itself; and in what the broker appraised."""
    records = house.scene.records("server")
    reports = {record.fields["pid"]: record.fields["lock-down"] for record in records if "lock-down" in record.fields}
    assert {report["zeroing"] for report in reports.values()} == {"enforced"}
    (by,) = {report["zeroing_by"] for report in reports.values()}
    for pid in reports if os.geteuid() == 0 else ():
        preloaded = LIBRARY.name in Path(f"/proc/{pid}/maps").read_text()
        assert preloaded is by.startswith("preload:"), f"{pid}: {by}"
    appraised = [record.fields["claims"]["hermetic"] for record in house.scene.records("broker")
                 if isinstance(record.fields.get("claims"), dict)]  # fmt: skip
    assert {claims["zeroing-by"] for claims in appraised} == {by}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root looks at the descriptors of a locked process")
def test_locked_processes_hold_no_file_open_but_memory(house: House) -> None:
    """Descriptors that were open before the lock-down would be a way round it."""
    for pid in locked(house):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = str(descriptor.readlink())
            kind = target.partition(":")[0]
            allowed = kind in ("socket", "pipe", "anon_inode", "/memfd") or target == "/dev/null"
            # What a test runner gives us as standard error is its own.
            assert allowed or descriptor.name == "2", f"{pid}: {descriptor.name} -> {target}"


# ------------------------------------------------------------------------------------------------------------ telemetry


@pytest.mark.skipif(os.geteuid() != 0, reason="only root looks at the descriptors of a locked process")
def test_no_connection_leaves_this_machine(house: House) -> None:
    """Over the whole life of a server: test_nothing_on_disk.py."""
    for found in tcp_sockets(house.served.pids):
        assert found.local[0] == "127.0.0.1"
        assert found.remote is None or found.remote[0] == "127.0.0.1"
    workers = house.served.children(WORKER)
    assert tcp_sockets(workers) == []
    for pid in workers:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"ORT_DISABLE_TELEMETRY=1" in environment
