"""The serving key at rest is where nobody reads it: not in the process that made it, and in no memfd that stays."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hermetic.attestation.key_memory import probe
from hermetic.enclave.memory_scan import scan
from hermetic.enclave.zero_on_free import environment, interpreter
from hermetic.errors import ConfigurationError
from hermetic.server.config import Tls
from hermetic.server.serving_key import ServingKey, make_serving_key

PROGRAM = """
import os, sys
from pathlib import Path
from hermetic.server.config import Tls
from hermetic.server.serving_key import make_serving_key
settings = Tls.model_construct(certificate_source="files", key=Path(sys.argv[1]), certificate=Path(sys.argv[2]))
key = make_serving_key(settings, None)
with key.handed_out() as descriptor:
    print(descriptor, flush=True)
    sys.stdin.readline()
print("at rest", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def settings(key: ec.EllipticCurvePrivateKey, tmp_path: Path) -> Tls:
    """A key and its certificate in files."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    (tmp_path / "tls.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (tmp_path / "tls.key").write_bytes(pem_of(key))
    return Tls(
        certificate_source="files",
        key=tmp_path / "tls.key",
        certificate=tmp_path / "tls.pem",
        names=("localhost",),
        authorities={"clients": tmp_path / "tls.pem"},
    )


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def certify(_: ec.EllipticCurvePrivateKey, __: bytes) -> bytes:
    raise AssertionError("a key from a file is certified already")


def test_it_is_handed_out_whole_as_often_as_wanted_until_it_is_closed(
    key: ec.EllipticCurvePrivateKey, settings: Tls
) -> None:
    serving = make_serving_key(settings, certify)
    for _ in range(2):
        with serving.handed_out() as descriptor:
            assert os.pread(descriptor, 1 << 16, 0) == pem_of(key)
            with pytest.raises(PermissionError):
                os.pwrite(descriptor, b"x", 0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    serving.close()
    with pytest.raises(ValueError, match="wiped"), serving.handed_out():
        pass


def test_a_certificate_of_another_key_is_refused(settings: Tls) -> None:
    assert settings.key is not None
    settings.key.write_bytes(pem_of(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(ConfigurationError, match="wanted one for the serving key"):
        make_serving_key(settings, certify)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of other processes")
@pytest.mark.skipif(probe() != "secret", reason="this host has no secret memory")
def test_nobody_reads_it_at_rest(key: ec.EllipticCurvePrivateKey, settings: Tls) -> None:
    number = key.private_numbers().private_value
    canaries = {
        "text": pem_of(key).splitlines()[1],
        "number": number.to_bytes(32, "big"),
        "as OpenSSL has it": number.to_bytes(32, "little"),
    }
    process = subprocess.Popen(
        [*interpreter(), "-c", PROGRAM, str(settings.key), str(settings.certificate)],
        env=environment() | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process:
        assert process.stdout.readline().strip().isdigit()
        # The control: in a memfd on its way to a front end, which nobody has mapped, it is found.
        assert {hit.region for hit in scan(process.pid, canaries).hits} == {"/memfd:serving-key (deleted)"}
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"at rest\n"
        assert scan(process.pid, canaries).hits == ()
        process.stdin.write(b"\n")


def test_it_has_a_chain(key: ec.EllipticCurvePrivateKey, settings: Tls) -> None:
    assert settings.certificate is not None
    serving = ServingKey(key, settings.certificate.read_text())
    assert serving.not_after > datetime.now(UTC)
    serving.close()
