"""The kinds of collateral, what is special about each, and the limits of a bundle (docs/spec/collateral-bundle.md)."""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, get_args

Kind: TypeAlias = Literal[
    "amd-crl",
    "driver-rim",
    "ocsp",
    "pck-crl",
    "qe-identity",
    "root-crl",
    "signing-chain",
    "tcb-info",
    "vbios-rim",
    "vcek",
    "vlek",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
REVOCATION: Final[frozenset[Kind]] = frozenset({"amd-crl", "ocsp", "pck-crl", "root-crl"})
"""Kinds that say what has been taken back: no grace unless it is written for the kind itself."""

MAX_BUNDLE_SIZE: Final = 64 * 1024 * 1024  # bytes
MAX_MANIFEST_SIZE: Final = 4 * 1024 * 1024  # bytes
MAX_ENTRIES: Final = 4096
MAX_ITEM_SIZE: Final = 1024 * 1024  # bytes
MAX_TEXT: Final = 256  # characters of a subject or source
MAX_NUMBER: Final = (1 << 53) - 1  # the largest integer that JSON holds everywhere

_PCS: Final = "https://api.trustedservices.intel.com"
_NVIDIA: Final = "https://rim.attestation.nvidia.com/v1/rim"
RENEWED_AT: Final[Mapping[Kind, str]] = {
    "amd-crl": "https://kdsintf.amd.com/vcek/v1/<product>/crl",
    "driver-rim": f"{_NVIDIA}/NV_GPU_DRIVER_<chip>_<version>",
    "ocsp": "https://ocsp.ndis.nvidia.com",
    "pck-crl": f"{_PCS}/sgx/certification/v4/pckcrl?ca=<platform|processor>&encoding=der",
    "qe-identity": f"{_PCS}/<tdx|sgx>/certification/v4/qe/identity",
    "root-crl": "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
    "signing-chain": f"{_PCS} (header TCB-Info-Issuer-Chain or SGX-PCK-CRL-Issuer-Chain of an answer)",
    "tcb-info": f"{_PCS}/<tdx|sgx>/certification/v4/tcb?fmspc=<fmspc>",
    "vbios-rim": f"{_NVIDIA}/NV_GPU_VBIOS_<project>_<sku>_<chip sku>_<version without dots>",
    "vcek": "https://kdsintf.amd.com/vcek/v1/<product>/<chip id>?blSPL=..&teeSPL=..&snpSPL=..&ucodeSPL=..",
    "vlek": "the cloud provider",
}
"""Where a machine with internet gets a newer one. Text for people: nothing here fetches."""
