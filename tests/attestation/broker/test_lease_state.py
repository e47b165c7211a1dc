"""Which chips evidence names, and that a lease ends, and no other is issued, where one of them is revoked. Pure."""

import pytest

from hermetic.attestation.broker.lease_state import Holding, LeaseState, Target, chips
from hermetic.attestation.claims import Claims, TpmClaims
from hermetic.attestation.lease import LeasedModel, LeaseTerms
from tests.attestation.policy import test_refusals as matrix

TPM = TpmClaims(
    checks=(),
    software=False,
    enrolled="certificate",
    ak_name="0" * 68,
    ak_spki="a" * 64,
    ek="e" * 64,
    reset_count=1,
    restart_count=0,
    firmware_version="0" * 16,
    clock_safe=True,
    pcrs={},
    boot_log=False,
    log_pcr=None,
    log_base=None,
    manifests=(),
    measured_code=None,
    secure_boot=None,
)
NAMES = {
    "tpm": (Claims(kinds=(TPM,)), ("tpm-ek:" + "e" * 64,)),
    "tpm without an EK": (Claims(kinds=(TPM.model_copy(update={"ek": None}),)), ("tpm-ak:" + "a" * 64,)),
    "snp": (Claims(kinds=(matrix.SNP,)), ("snp-chip:" + "c1" * 64,)),
    "masked snp": (Claims(kinds=(matrix.SNP.model_copy(update={"chip_id": None}),)), ()),
    "tdx": (Claims(kinds=(matrix.TDX,)), ("intel-ppid:" + "aa" * 16,)),
    "sgx": (Claims(kinds=(matrix.SGX,)), ("intel-ppid:" + "aa" * 16,)),
    "snp and GPUs": (
        Claims(kinds=(matrix.SNP, matrix.NVGPU)),
        tuple(sorted(("snp-chip:" + "c1" * 64, *(f"nvidia:{one.device}" for one in matrix.NVGPU.devices)))),
    ),
}
"""What evidence says -> the names of its chips, as docs/spec/leases.md has them."""
CLIENT = ("hosts", "host")


@pytest.mark.parametrize("kind", NAMES)
def test_a_revoked_chip_of_any_kind_ends_its_leases_and_gets_no_other(kind: str) -> None:
    claims, names = NAMES[kind]
    assert chips(claims) == names
    for name in names:
        state = LeaseState()
        state.enter(holding(chips(claims), "0" * 32))
        state.enter(holding((f"{name}0",), "1" * 32))
        target = Target("chip", name)
        assert [one.terms.jti for one in state.revoke(target, "stolen", 7).holdings] == ["0" * 32]
        assert list(state.holdings) == ["1" * 32]
        assert state.against(holding(chips(claims), "2" * 32)) == [target]
        assert state.against_host("another client", chips(claims)) == [target]
        assert state.against_host("another client", (f"{name}0",)) == []


def holding(of: tuple[str, ...], name: str) -> Holding:
    model = LeasedModel(name="model", version=1, manifest_digest="00" * 32)
    members = {"iss": "b", "jti": name, "iat": 0, "length_ms": 1, "grace_ms": 0, "client": CLIENT[1], "chips": of}
    return Holding(LeaseTerms.of(model, "a" * 43, **members), "models/model/1", CLIENT)
