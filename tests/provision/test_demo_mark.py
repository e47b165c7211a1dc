"""Everything of a demo says so, lives 7 days, and is refused elsewhere; nothing else carries the mark."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.attestation.demo_mark import DEMO_LIFE_DAYS, DEMO_OID, DEMO_ORGANISATION, is_demo, refuse_demo
from hermetic.errors import ConfigurationError
from hermetic.provision.authority import Authority, Leaf, Names, new_key

CLIENT = Leaf(
    "client", ExtendedKeyUsageOID.CLIENT_AUTH, [x509.UniformResourceIdentifier("spiffe://example.org/client/a")]
)


def _certificates(folder: Path) -> list[x509.Certificate]:
    paths = sorted(folder.rglob("*.pem"))
    return [certificate for path in paths for certificate in x509.load_pem_x509_certificates(path.read_bytes())]


def test_every_certificate_of_a_demo_is_marked_and_short(demo: Path) -> None:
    certificates = _certificates(demo)
    assert len(certificates) >= 10
    for certificate in certificates:
        organisation = certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
        assert [name.value for name in organisation] == [DEMO_ORGANISATION] == ["HERMETIC DEMO - NOT SECRET"]
        assert not certificate.extensions.get_extension_for_oid(DEMO_OID).critical
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        assert left <= timedelta(days=DEMO_LIFE_DAYS)
        with pytest.raises(ConfigurationError, match=r"tls.authority: expected a certificate of your own"):
            refuse_demo(certificate, "tls.authority")


def test_nothing_of_a_plain_installation_is_marked(plain: Path) -> None:
    for certificate in _certificates(plain):
        assert refuse_demo(certificate, "anywhere") is certificate
        assert DEMO_ORGANISATION not in certificate.subject.rfc4514_string()


def test_either_mark_is_enough() -> None:
    """Someone takes a demo's key and has it certified under a harmless name, or strips the extension."""
    renamed = Authority.create(Names("Harmless", demo=True), "CA").certificate
    unmarked = Authority.create(Names(DEMO_ORGANISATION, demo=False), "CA").certificate
    assert is_demo(renamed)
    assert is_demo(unmarked)


def test_what_a_demos_ca_issues_is_a_demos_too() -> None:
    authority = Authority.create(Names.of_demo(), "CA")
    harmless = Authority(Names("Harmless"), authority.certificate, authority.key)
    assert is_demo(harmless.issue(CLIENT, new_key().public_key()))


def test_lives_end_where_they_should() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for names, ca_days, leaf_days in ((Names("Own"), 1825, 90), (Names.of_demo(), 7, 7)):
        authority = Authority.create(names, "CA", now=now)
        leaf = authority.issue(CLIENT, new_key().public_key(), now=now)
        assert authority.certificate.not_valid_after_utc == now + timedelta(days=ca_days)
        assert leaf.not_valid_after_utc == now + timedelta(days=leaf_days)
