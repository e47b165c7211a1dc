"""What a worker is told of whose batch it gets: a number for each tenant, no name; and what it tells of its wiping."""

from hermetic.enclave.batch_frames import MIXED, encode_done
from hermetic.enclave.configuration import INFERRED
from tests.server.dispatch_machine import Stage

BEYOND = 2**64 - 1


def test_each_tenant_has_a_number_that_stays_and_rows_of_several_have_none() -> None:
    stage = Stage(INFERRED)
    stage.attach()
    told: dict[str, int] = {}
    for tenant in ("red", "blue", "", "red", "blue"):
        stage.submit(tenant, 2, 1)
        stage.settle()
        stage.wait(1)
        (batch,) = stage.links[0][1].sent
        assert told.setdefault(tenant, batch.tenant) == batch.tenant
        stage.answer(0)
    assert told[""] == MIXED
    assert len(set(told.values())) == len(told)


def test_a_worker_that_lies_about_its_wiping_counts_no_more_than_there_was() -> None:
    stage = Stage(INFERRED)
    stage.attach()
    stage.submit("red", 2, 1)
    stage.settle()
    stage.wait(1)
    link, wire, _ = stage.links[0]
    batch = wire.sent.pop()
    stage.now += 2
    stage.dispatcher.received(link, encode_done(batch.buffer, batch.sequence, batch.inputs, 1, 1, 1, BEYOND, BEYOND))
    assert 0 < stage.statistics.wipe_ns <= 3 * 10**9
    assert stage.statistics.unlocked_bytes == stage.place.stride
