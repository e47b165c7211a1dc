"""What a worker says of a failed batch may quote any row of it: who hears that."""

import pytest

from hermetic.enclave.batch_frames import STATUS_FAILED, STATUS_REFUSED, decode_done, encode_not_done
from hermetic.server.batch_answers import failure

QUOTE = "a row of another tenant's"


@pytest.mark.parametrize(
    ("status", "mixed", "heard"),
    [(STATUS_REFUSED, False, True), (STATUS_REFUSED, True, False), (STATUS_FAILED, False, False)],
    ids=["refused, one tenant", "refused, several", "failed"],
)
def test_a_hostile_model_tells_no_tenant_of_anothers_rows_by_its_errors(status: int, mixed: bool, heard: bool) -> None:
    told = failure(decode_done(encode_not_done(0, 1, status, QUOTE)), mixed=mixed)
    assert (QUOTE in str(told)) == heard
