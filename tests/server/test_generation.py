"""The instances of a generation: which are there, and when the next try of one that was lost is due."""

from typing import Any

from hermetic.server.generation import RESTART_DELAYS_S, STEADY_S, Instance
from tests.server.test_repository import generation, sealed

WORKER: Any = object()


def test_the_delay_before_a_restart_grows_with_each_loss_and_stays_at_its_end() -> None:
    one = Instance(0)
    delays = []
    for _ in range(len(RESTART_DELAYS_S) + 2):
        one.ready(WORKER, 100.0)
        delays.append(one.lost(100.0) - 100.0)
    assert delays == [*RESTART_DELAYS_S, RESTART_DELAYS_S[-1], RESTART_DELAYS_S[-1]]


def test_a_worker_that_has_served_long_forgets_earlier_losses() -> None:
    one = Instance(0)
    one.ready(WORKER, 0.0)
    one.lost(1.0)
    one.ready(WORKER, 2.0)
    one.lost(3.0)
    one.ready(WORKER, 10.0)
    assert one.lost(11.0 + STEADY_S) == 11.0 + STEADY_S + RESTART_DELAYS_S[0]


def test_a_generation_is_over_when_no_instance_has_a_worker_or_waits_for_one() -> None:
    one = generation(sealed(instances=3))
    assert [instance.number for instance in one.instances] == [0, 1, 2]
    seen = [one.over]
    one.instances[2].lost(0.0)
    seen.append(one.over)
    one.instances[2].given_up()
    one.instances[1].starting = True
    seen.append(one.over)
    assert seen == [True, False, False]


def test_a_generation_serves_a_file_as_long_as_content_settings_and_configuration_are_the_same() -> None:
    file = sealed()
    one = generation(file)
    assert one.serves(sealed(), file.manifest.configuration)
    assert not one.serves(sealed(2), file.manifest.configuration)
    assert not one.serves(file, file.manifest.configuration.model_copy(update={"instances": 2}))


def test_front_ends_are_told_the_configuration_that_counts() -> None:
    file = sealed()
    changed = file.manifest.configuration.model_copy(update={"instances": 2})
    one = generation(file)
    one.configuration = changed
    assert one.description().configuration == changed
    assert one.description().model_inputs == file.manifest.description().model_inputs
