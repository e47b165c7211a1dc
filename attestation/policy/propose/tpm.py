"""The table [tpm] that known-good boots ask for."""

from collections.abc import Sequence
from typing import Final

from hermetic.attestation.claims import TpmClaims
from hermetic.attestation.policy.propose.draft import ANY, Entry, Table, if_all, seen
from hermetic.attestation.policy.tpm import ZEROS

STATIC_PCRS: Final = (*range(10), *range(11, 16))
"""Those that a boot fills. Not 10, which IMA extends all the time, nor 16 to 23, which can be reset."""


def tpm_tables(captures: Sequence[TpmClaims]) -> tuple[Table, ...]:
    """The tables for exactly these boots."""
    keys = seen(one.ek for one in captures)
    is_bare = any(one.enrolled == "provisioned" for one in captures)
    roots = [root for one in captures for root in ((one.measured_code and one.measured_code.root_hashes) or (None,))]
    entries = (
        Entry(
            "ek",
            keys,
            "Whose machine: SHA-256 of the endorsement keys seen.",
            "a TPM's endorsement key is not known: this form cannot tell machines apart by it" if keys == ANY else "",
        ),
        Entry(
            "provisioned_ak",
            is_bare,
            review="a key was taken at its word: nobody vouches that it is a TPM's. Enrol it" if is_bare else "",
        ),
        Entry("root_hashes", seen(roots), "dm-verity root hashes in the measured command line."),
        Entry("secure_boot", if_all(captures, lambda one: one.secure_boot is True)),
        Entry("log_base", _log_base(captures), "What the log's PCR held before our first event."),
    )
    return (
        Table("tpm", entries, "TPM quotes. Each list holds exactly what was seen."),
        Table(
            "tpm.pcrs",
            _pcrs(captures),
            "What a good boot leaves in the PCRs; an update of firmware or kernel changes it.",
        ),
    )


def _log_base(captures: Sequence[TpmClaims]) -> tuple[str, ...] | str:
    bases = {one.log_base for one in captures if one.log_base is not None}
    return tuple(sorted(bases)) if bases - {ZEROS} else "zeros"


def _pcrs(captures: Sequence[TpmClaims]) -> tuple[Entry, ...]:
    logs = {one.log_pcr for one in captures}
    values = {i: seen(one.pcrs.get(str(i)) for one in captures) for i in STATIC_PCRS if i not in logs}
    return tuple(Entry(str(index), value) for index, value in values.items() if value != ANY)
