"""The authorities of AMD's SEV keys that a release ships: ARK, ASK and ASVK of Milan, Genoa and Turin.

DER, as AMD's key distribution service gives them (https://kdsintf.amd.com/vcek/v1/<product>/cert_chain, and vlek). They
are the same certificates as in google/go-sev-guest, `verify/trust/ask_ark_*.pem`. A file with another fingerprint than
the one below is refused.
"""

import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Final

from hermetic.attestation.abi.amd_certificate import AmdCertificate
from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.roots.snp_trust import AmdAuthorities
from hermetic.errors import ConfigurationError

FINGERPRINTS: Final[Mapping[Generation, Mapping[str, str]]] = {
    Generation.MILAN: {
        "ark": "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
        "ask": "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
        "asvk": "c5e081f59b7efab1fe2f8b505e159704e72f29cab7ef7cf628a05a42439082f5",
    },
    Generation.GENOA: {
        "ark": "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
        "ask": "5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521",
        "asvk": "197e610743a917d6b9bb982a5a9226ccc0a15b611be0619e626aca9151457372",
    },
    Generation.TURIN: {
        "ark": "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
        "ask": "5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185",
        "asvk": "104e10a8bd060a3c20a434261a57d0588fd65a88915b4f65b08bdecaf8df1a3c",
    },
}
"""SHA-256 of each file's bytes."""


def load() -> tuple[AmdAuthorities, ...]:
    """The shipped authorities, one per generation; raises `ConfigurationError` for a file that is another."""
    return tuple(
        AmdAuthorities(generation, *(_read(generation, name) for name in ("ark", "ask", "asvk")))
        for generation in FINGERPRINTS
    )


def _read(generation: Generation, name: str) -> AmdCertificate:
    file = f"{generation.lower()}-{name}.der"
    data = resources.files(__package__).joinpath(file).read_bytes()
    found, wanted = hashlib.sha256(data).hexdigest(), FINGERPRINTS[generation][name]
    if found != wanted:
        raise ConfigurationError(f"roots/amd/{file}: expected SHA-256 {wanted}, got {found}")
    return AmdCertificate.parse(data)
