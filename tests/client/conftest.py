"""A real software TPM that is enrolled, as the attesters' tests have it."""

from tests.attestation.conftest import (
    ak_ca,
    attester,
    ek_trust,
    enrolled,
    manufactured,
    now,
    settings,
    tpm,
    tpm_ca,
    tpm_folder,
    trust,
)

__all__ = [
    "ak_ca",
    "attester",
    "ek_trust",
    "enrolled",
    "manufactured",
    "now",
    "settings",
    "tpm",
    "tpm_ca",
    "tpm_folder",
    "trust",
]
