"""Quotes of Intel with other certificates in them."""

from hermetic.attestation.abi.dcap import Quote
from tests.attestation.stored.cases import placed
from tests.attestation.stored.rows import INTEL_2025_07, read

INTEL = tuple(map(read, INTEL_2025_07))
"""Collateral that belongs to some of them."""


def with_chain(quote: bytes, chain: bytes) -> bytes:
    """The quote with another chain of certificates in it, and sizes that fit."""
    parsed = Quote.parse(quote)
    old, grown = parsed.signature.certificates, len(chain) - len(parsed.signature.certificates)
    start = quote.index(old)
    sizes = [start - 4, len(parsed.signed)]
    if parsed.header.version > 3:
        sizes.append(len(parsed.signed) + 4 + 128 + 2)  # of the certification data that all of this is
    for at in sizes:
        quote = placed(quote, at, (int.from_bytes(quote[at : at + 4], "little") + grown).to_bytes(4, "little"))
    return quote[:start] + chain + quote[start + len(old) :]


def with_edited_leaf(quote: bytes) -> bytes:
    """The quote with a bit of the PCK certificate's signed part flipped: six bits are one character of its PEM."""
    at = quote.index(b"-----BEGIN CERTIFICATE-----") + 27 + 700
    return placed(quote, at, b"B" if quote[at : at + 1] != b"B" else b"C")


def another_chain() -> bytes:
    """The certificates of another platform."""
    return Quote.parse(read("tdx/phala_b0c06f_v4.quote")).signature.certificates
