"""Which certificates an installation has: one role each, from one CA, under one name.

A role's SPIFFE name is `spiffe://<trust domain>/<role>/<name>`; the broker's own certificate carries host names, which
its callers check. The serving certificate is not here: the broker issues it after attestation.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.errors import ConfigurationError
from hermetic.provision.authority import Leaf

__all__ = ["AUTHORITIES", "ONLINE_AUTHORITIES", "ROLES", "Role", "addresses", "host_names", "spiffe"]

AUTHORITIES: Final[dict[str, str]] = {
    "hosts": "hosts that may ask the broker",
    "operators": "operators of broker and servers",
    "clients": "clients of servers",
    "services": "the broker's own certificate",
}
"""CAs whose keys stay in `authority/`, and whose bundle stands at which door."""

ONLINE_AUTHORITIES: Final[dict[str, str]] = {
    "serving-ca": "serving keys, after attestation",
    "ak-ca": "attestation keys of TPMs, after enrolment",
}
"""CAs that the broker signs with by itself; their keys lie in `broker/`."""


@dataclass(frozen=True, slots=True)
class Role:
    """One certificate: the files `<folder>/<stem>.{key,csr,pem}`, from the CA `authority`."""

    folder: str
    stem: str
    authority: str
    common_name: str
    serves: bool = False

    def leaf(self, trust_domain: str, names: Sequence[str]) -> Leaf:
        """What the certificate says; `names` are the host names of a role that serves."""
        uri = x509.UniformResourceIdentifier(self.spiffe(trust_domain))
        return self.leaf_of(host_names(names) if self.serves else [uri])

    def leaf_of(self, alternatives: Sequence[x509.GeneralName]) -> Leaf:
        """What the certificate says under these names, once they are of the role's kind: hosts, or one SPIFFE name.

        Raises `ConfigurationError` for any other kind of name.
        """
        uris = [name.value for name in alternatives if isinstance(name, x509.UniformResourceIdentifier)]
        hosts = [name for name in alternatives if isinstance(name, x509.DNSName | x509.IPAddress)]
        if self.serves:
            if not hosts or len(hosts) != len(alternatives):
                raise ConfigurationError(f"{self.stem}: expected host names only, got {list(map(str, alternatives))}")
            return Leaf(self.common_name, ExtendedKeyUsageOID.SERVER_AUTH, alternatives)
        if len(alternatives) != 1 or len(uris) != 1 or not uris[0].startswith("spiffe://"):
            raise ConfigurationError(f"{self.stem}: expected one SPIFFE name, got {list(map(str, alternatives))}")
        return Leaf(self.common_name, ExtendedKeyUsageOID.CLIENT_AUTH, alternatives)

    def spiffe(self, trust_domain: str) -> str:
        """The role's SPIFFE name."""
        return spiffe(trust_domain, self.stem, "first")


ROLES: Final = {
    "broker": Role("broker", "tls", "services", "key broker", serves=True),
    "host": Role("server", "host", "hosts", "inference host"),
    "client": Role("client", "client", "clients", "client"),
    "operator": Role("authority/operator", "operator", "operators", "operator"),
}


def spiffe(trust_domain: str, role: str, name: str) -> str:
    """The SPIFFE name of `name` in `role`; raises `ConfigurationError` for a trust domain that cannot stand in one."""
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789.-_")
    if not trust_domain or not set(trust_domain) <= allowed:
        raise ConfigurationError(f"trust domain: expected lower-case letters, digits and .-_, got {trust_domain!r}")
    return f"spiffe://{trust_domain}/{role}/{name}"


def host_names(names: Sequence[str]) -> list[x509.GeneralName]:
    """Host names and IP addresses as a certificate's alternative names."""
    if not names:
        raise ConfigurationError("host names: expected at least one, got none")
    return [_general_name(name) for name in names]


def addresses(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Host names apart from IP addresses, as text."""
    general = host_names(names)
    dns = [str(name.value) for name in general if isinstance(name, x509.DNSName)]
    return dns, [str(name.value) for name in general if isinstance(name, x509.IPAddress)]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
