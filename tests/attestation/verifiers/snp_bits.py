"""`make evidence-bits`: every bit that recorded SNP evidence signs, and Azure's, changed alone, minutes.

Each goes through all of the verification, and one of the checks that what changed is about must refuse it. `make test`
takes a sample, and every bit of one report against the signature alone.
"""

from collections.abc import Callable, Iterable

import pytest

from hermetic.attestation.abi.snp import SIGNED_SIZE
from hermetic.attestation.checks import Checks
from hermetic.attestation.verifiers import azure_snp, snp
from hermetic.errors import VerificationError
from tests.attestation.verifiers import test_azure_snp as azure
from tests.attestation.verifiers import test_recorded_snp as recorded

Failures = Callable[[int], set[str]]


def bare(good: recorded.Recorded) -> Failures:
    """Names of the checks that fail with one bit of the report changed."""
    report, certificates = good.report, good.certificates()

    def failures(bit: int) -> set[str]:
        changed = bytearray(report)
        changed[bit // 8] ^= 1 << bit % 8
        checks = Checks()
        snp.check_report(checks, bytes(changed), certificates, recorded.TRUST.snp, good.time)
        return {check.name for check in checks.failed}

    return failures


def within(values: list[int], span: range) -> Failures:
    """Names of the checks that fail with one bit of `span` in Azure's evidence changed."""

    def failures(bit: int) -> set[str]:
        azure.flip(values, span, bit)
        checks = Checks()
        try:
            azure_snp.judge(checks, azure.GENOA, azure.GENOA_NONCE, azure.TRUST, azure.NOW)
        except VerificationError:
            return {check.name for check in checks.failed}
        finally:
            azure.flip(values, span, bit)
        return set()

    return failures


def sweeps() -> Iterable[tuple[str, int, Failures, set[str]]]:
    """Name, number of bits, and the checks of which one must fail."""
    for good in recorded.GOOD:
        yield str(good), 8 * SIGNED_SIZE, bare(good), {"snp.report", "snp.signature"}
    report, message = azure.GENOA["report"], azure.GENOA["quote"]["message"]
    variable = range(1236, 1236 + 1200)
    hardware = range(32, 32 + SIGNED_SIZE)
    yield "azure: report", 8 * len(hardware), within(report, hardware), {"snp.report", "snp.signature"}
    yield "azure: variable data", 8 * len(variable), within(report, variable), {"azure.structure", "azure.hcl.binding"}
    yield "azure: quote", 8 * len(message), within(message, range(len(message))), {"tpm.quote.signature"}


SWEEPS = list(sweeps())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("bits", "failures", "wanted"), [one[1:] for one in SWEEPS], ids=[one[0] for one in SWEEPS])
def test_every_bit_is_refused(bits: int, failures: Failures, wanted: set[str]) -> None:
    assert not [bit for bit in range(bits) if not failures(bit) & wanted]
