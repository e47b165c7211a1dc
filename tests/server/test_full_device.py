"""A GPU without room for a batch: its callers hear of a limit, and not of a broken model."""

from hermetic.enclave.batch_frames import STATUS_FULL, decode_done, encode_not_done
from hermetic.errors import OverloadedError
from hermetic.server.batch_answers import failure
from hermetic.server.status import Code, status_of


def test_callers_are_told_of_the_limit_and_nothing_of_the_workers_words() -> None:
    done = decode_done(encode_not_done(0, 1, STATUS_FULL, "another tenant's 4711 bytes"))
    error = failure(done, mixed=False)
    assert isinstance(error, OverloadedError)
    assert "4711" not in str(error)
    assert status_of(error).code == Code.RESOURCE_EXHAUSTED
