"""The certificate table that a hypervisor gives beside an SNP report (auxblob of configfs-tsm).

Source: AMD 56421 (GHCB), "SNP Extended Guest Request": entries of GUID, offset and length, ended by one of zeros, then
the certificates. The hypervisor is hostile: nothing here is believed, only read. Not here: what counts of it.
"""

import uuid
from collections.abc import Mapping
from typing import Final

from hermetic.attestation.abi.amd_certificate import MAX_CERTIFICATE_SIZE, MAX_CRL_SIZE
from hermetic.attestation.abi.cursor import Cursor
from hermetic.attestation.abi.snp_json import Certificates
from hermetic.errors import InvalidRequestError

MAX_ENTRIES: Final = 16
VCEK: Final = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK: Final = uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
CRL: Final = uuid.UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea")

_KINDS: Final[Mapping[bytes, str]] = {
    order: kind
    for kind, guid in (("VCEK", VCEK), ("VLEK", VLEK), ("CRL", CRL))
    for order in (guid.bytes, guid.bytes_le)
}
"""A GUID's bytes -> what it names. Hypervisors write either order of bytes."""


def parse(table: bytes) -> Certificates:
    """The certificates of `table` that are of use; raises `InvalidRequestError` where it is none."""
    what = "SNP certificate table"
    cursor = Cursor(table, what, "little")
    found: dict[str, list[bytes]] = {"VCEK": [], "VLEK": [], "CRL": []}
    for _ in range(MAX_ENTRIES):
        if not cursor.left and not cursor.position:
            break  # no table at all
        guid, offset, size = cursor.take(16, "GUID"), cursor.uint(4, "offset"), cursor.uint(4, "length")
        if not any(guid):
            break
        if offset + size > len(table):
            raise InvalidRequestError(f"{what}: expected entries within {len(table)} bytes, got {offset} + {size}")
        kind = _KINDS.get(guid)
        if kind is not None and size:
            limit = MAX_CRL_SIZE if kind == "CRL" else MAX_CERTIFICATE_SIZE
            if size > limit:
                raise InvalidRequestError(f"{what}: expected at most {limit} bytes of {kind}, got {size}")
            found[kind].append(table[offset : offset + size])
    else:
        raise InvalidRequestError(f"{what}: expected at most {MAX_ENTRIES} entries, got more")
    return Certificates(*(tuple(found[kind]) for kind in ("VCEK", "VLEK", "CRL")))
