"""A model that never returns: its worker is ended, its callers are told why, others do not notice; then it is out."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from tritonclient.utils import InferenceServerException

from hermetic.attestation.log.record import Record
from tests.flows.endless import endless, fatal
from tests.flows.networks import Network, dense
from tests.flows.scene import Client, Running, Scene, check_answers, index_of, question, scene
from tests.flows.test_repository_explicit import Asking

BATCH_TIMEOUT_S = 1
PATIENCE_S = 60  # of a caller: without a watchdog it would be this that ends its wait
SETTINGS = f"""[repository]
folder = "models"

[repository.models.hostile]
batch_timeout_s = {BATCH_TIMEOUT_S}
stops_allowed = 1

[log]"""


@dataclass(slots=True)
class Cast:
    """The server, a model that can be made to loop for ever, and one that cannot."""

    scene: Scene
    served: Running
    hostile: Network
    good: Network
    operator: Client

    def records(self, kind: str) -> list[Record]:
        """What the log says of the hostile model."""
        return [
            record
            for record in self.scene.records("server")
            if record.kind == kind and record.fields.get("model") == "hostile"
        ]

    def ask_the_fatal_question(self) -> InferenceServerException:
        with self.served.client() as client, pytest.raises(InferenceServerException) as caught:
            client.infer("hostile", question(fatal(self.hostile)), client_timeout=PATIENCE_S)
        return caught.value


@pytest.fixture(scope="module")
def cast() -> Iterator[Cast]:
    with scene("sample") as place:
        hostile, good = endless(place.workshop, "hostile", seed=1), dense(place.workshop, "good", seed=2)
        files = [place.seal(network) for network in (hostile, good)]
        with place.serve([], replace=[("[log]", SETTINGS)]) as served, served.client(operator=True) as operator:
            for file in files:
                served.wait_until_ready(file)
            yield Cast(place, served, hostile, good, operator)


def test_a_batch_without_end_costs_its_worker_and_nobody_else(cast: Cast) -> None:
    moment = cast.served.ear.now
    with Asking(cast.served, cast.good) as others:
        error = cast.ask_the_fatal_question()
    assert others.answered
    assert others.errors == []
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert "the model took more time or CPU than it may (id " in error.message()
    cast.served.wait_until_lost_and_ready(cast.scene.sealed["hostile"], moment)
    with cast.served.client() as client:
        check_answers(client, cast.hostile)
    (stopped,), (lost,) = cast.records("worker.stopped"), cast.records("worker.lost")
    assert stopped.fields["limit"] == "batch_timeout_s"
    assert "ended by the watchdog: batch_timeout_s: wanted at most 1 s" in str(lost.fields["reason"])
    story = [r for r in cast.scene.records("server") if "wanted at most 1 s for a batch" in str(r.fields)]
    assert len(story) > len([stopped, lost]), "the caller's request is on record with the reason too"


def test_a_model_that_does_it_again_is_out_until_an_operator_wants_it(cast: Cast) -> None:
    """The second stop, where one is allowed; whoever waits in the queue is told too."""
    moment = cast.served.ear.now
    with ThreadPoolExecutor(2) as pool:
        errors = list(pool.map(lambda _: cast.ask_the_fatal_question(), range(2)))
    assert all(error.status() in ("StatusCode.DEADLINE_EXCEEDED", "StatusCode.UNAVAILABLE") for error in errors)
    cast.served.ear.wait_for(r"^model hostile version 1: UNAVAILABLE quarantined", moment)
    state, reason = index_of(cast.operator)["hostile"]
    assert state == "UNAVAILABLE"
    assert reason.startswith("quarantined: its workers were ended more than 1 times; the last: batch_timeout_s: wanted")
    assert len(cast.records("model.quarantined")) == 1
    assert index_of(cast.operator)["good"][0] == "READY"
    cast.operator.load_model("hostile")
    with cast.served.client() as client:
        check_answers(client, cast.hostile)
        check_answers(client, cast.good)
