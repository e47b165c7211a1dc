from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.demo_mark import DEMO_ORGANISATION
from hermetic.attestation.roots.load import certificates
from hermetic.errors import ConfigurationError
from tests.attestation.conftest import certificate_authority

VECTORS = Path(__file__).parents[2] / "vectors" / "tpm"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_files_of_der_and_pem_and_folders_of_them_are_read(tmp_path: Path) -> None:
    root = VECTORS / "gcp_ek_ak_ca_root.crt"
    (der,) = certificates([root], "production")
    both = der.public_bytes(Encoding.PEM) * 2
    (tmp_path / "bundle.pem").write_bytes(both)
    (tmp_path / "notes.txt").write_text("not a certificate")
    assert certificates([tmp_path, root], "production") == (der, der, der)


def test_a_demo_s_certificate_is_refused_in_production(tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    key = ec.generate_private_key(ec.SECP256R1())
    plain = certificate_authority(key, NOW)
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, DEMO_ORGANISATION)])
    demo = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(plain.not_valid_before_utc)
        .not_valid_after(plain.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "demo.pem"
    path.write_bytes(demo.public_bytes(Encoding.PEM))
    with pytest.raises(ConfigurationError, match="no demo's certificate"):
        certificates([path], "production")
    assert certificates([path], "demo") == (demo,)


@pytest.mark.parametrize(
    "content", [None, b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_holds_no_certificate_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"root\.pem: expected"):
        certificates([path], "production")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected certificate files"):
        certificates([tmp_path], "production")
