"""Leases among doubles: when they are renewed, what a refusal means, who is told; and the emulated ones."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from hermetic.attestation.clock import boottime
from hermetic.attestation.exchange import LeaseEvent
from hermetic.attestation.gpu_identity import GpuFacts
from hermetic.attestation.lease import LeasedModel, LeaseTerms
from hermetic.enclave.manifest import Manifest
from hermetic.enclave.supervisor import Worker
from hermetic.errors import (
    BrokerRefusedError,
    BrokerUnreachableError,
    DeviceError,
    GpuChangedError,
    HermeticError,
    LeaseEndedError,
)
from hermetic.server.cpu_plan import Place
from hermetic.server.generation import SealedFile
from hermetic.server.leases import LeaseKeeper
from hermetic.server.loading import Leased, Loaded, Loader
from hermetic.server.messages import ModelStop, WorkerStopped
from hermetic.server.metrics import Facts, Page, render
from hermetic.server.repository import Slot
from hermetic.server.status import Code, status_of
from hermetic.server.tally import Tally
from tests.server.keeping import Keeping, LoaderDouble, Told
from tests.server.test_repository import sealed

LENGTH_S, GRACE_S = 0.3, 0.3


GPU = GpuFacts("GPU-0", "aa", "HOPPER", "580.1", "96.00", "on", "off", "production")


def terms(number: int) -> LeaseTerms:
    model = LeasedModel(name="m", version=1, manifest_digest="00" * 32)
    members: dict[str, Any] = {"iss": "b", "jti": f"{number:032x}", "iat": 0, "length_ms": 1, "grace_ms": 0}
    return LeaseTerms.of(model, "A" * 43, **members, client=None, chips=())


class Leasing(LoaderDouble):
    """Loads under leases of a fraction of a second; `refusals` are what the next renewals raise."""

    def __init__(self, *, offered: bool = True, length_s: float = LENGTH_S) -> None:
        super().__init__()
        self.refusals: deque[HermeticError] = deque()
        self.offered = offered
        self.on_log_fault: Callable[[str], None] = lambda _: None
        self.length_s = length_s
        self.issued = 0
        self.gpus: tuple[GpuFacts, ...] = ()

    def leased(self) -> Leased:
        self.issued += 1
        return Leased(
            terms(self.issued) if self.offered else None,
            "a key" if self.offered else "",
            boottime(),
            self.length_s,
            GRACE_S,
            gpu=next(iter(self.gpus), None),
        )

    def load(self, file: SealedFile, place: Place) -> Loaded:
        loaded = super().load(file, place)
        return Loaded(loaded.worker, loaded.opened, loaded.release, self.leased())

    def renew(self, _worker: Worker, _manifest: Manifest, _leased: Leased, _timeout_s: float) -> Leased:
        if self.refusals:
            raise self.refusals.popleft()
        return self.leased()


class House:
    """A model keeper with leases."""

    def __init__(self, loader: Leasing) -> None:
        self.loader = loader
        self.keeping = Keeping(loader=loader)
        self.leases = LeaseKeeper(cast(Loader, loader), self.keeping.around)
        keeper = self.keeping.keeper
        keeper.on_serving, keeper.unloading.on_leaving = self.leases.watch, self.leases.forget
        self.leases.on_over = keeper.stop_at_once
        self.front_end = self.keeping.front_end(1)

    def load(self) -> tuple[Slot, Told]:
        file = sealed()
        slot, told = self.keeping.repository.put(file), Told()
        self.keeping.keeper.load(slot, file, file.manifest.configuration, told)
        self.keeping.settle()
        return slot, told

    def records(self, kind: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.keeping.records if name == kind]

    def until_over(self, slot: Slot) -> str:
        """Wait until nothing of the model is left; returns what its callers were told."""
        self.keeping.turn_until(lambda: bool(self.records("lease.over")))
        (told,) = self.front_end.told(WorkerStopped)
        assert told.lease_over
        (stop,) = self.front_end.told(ModelStop)
        self.keeping.keeper.stopped_at(1, stop.name, stop.version, stop.generation)
        self.keeping.turn_until(lambda: slot.state == "UNAVAILABLE")
        assert [worker.ended for worker in self.loader.workers] == ["unloaded"]
        return str(told.reason)


@pytest.fixture
def house() -> Iterator[House]:
    house = House(Leasing())
    yield house
    house.leases.stopped = True
    house.keeping.loop.close()


def test_a_lease_is_renewed_again_and_again(house: House) -> None:
    slot, _ = house.load()
    house.keeping.turn_until(lambda: len(house.records("lease.renewed")) >= 3)
    assert slot.state == "READY"
    facts = house.leases.facts()
    assert (facts.failures, facts.ended, len(facts.workers)) == (0, 0, 1)
    assert facts.workers[0].state == "held"


def test_a_broker_that_is_away_is_asked_again(house: House) -> None:
    house.loader.refusals += [BrokerUnreachableError("away"), BrokerRefusedError("restarted", variant="TokenNotFound")]
    slot, _ = house.load()
    house.keeping.turn_until(lambda: bool(house.records("lease.renewed")))
    assert [fields["reason"] for fields in house.records("lease.not-renewed")] == ["away", "restarted"]
    assert slot.state == "READY"


def test_a_policys_no_is_final(house: House) -> None:
    house.loader.refusals.append(BrokerRefusedError("no", variant="PolicyDeny"))
    slot, _ = house.load()
    assert house.until_over(slot) == slot.reason == "its lease was not renewed: the broker's policy refuses"
    assert house.loader.issued == 1


def test_a_gpu_that_is_another_is_final_for_the_model_on_it(house: House) -> None:
    house.loader.gpus = (GPU,)
    house.loader.refusals.append(GpuChangedError("GPU GPU-0: wanted it, got another"))
    slot, _ = house.load()
    assert house.until_over(slot) == slot.reason == "its lease was not renewed: GPU GPU-0: wanted it, got another"
    assert house.leases.facts().gpu_changes == 1


def test_a_driver_that_does_not_answer_and_gpus_under_other_models_are_asked_again(house: House) -> None:
    house.loader.refusals += [DeviceError("no answer"), GpuChangedError("expected a GPU, got none")]
    slot, _ = house.load()
    house.keeping.turn_until(lambda: bool(house.records("lease.renewed")))
    assert slot.state == "READY"


def test_metrics_say_which_gpus_and_in_which_mode(house: House) -> None:
    house.loader.gpus = (GPU,)
    facts = Facts(profile="demo", waived=(), epoch=1, epochs_refused=0, front_ends=1, front_ends_lost=0, models=(),
                  leases=house.leases.facts())  # fmt: skip
    lines = render(Page(tally=Tally(), facts=facts)).splitlines()
    info = next(line for line in lines if line.startswith("hermetic_gpu_info{"))
    assert 'uuid="GPU-0"' in info
    assert 'driver="580.1"' in info
    assert 'vbios="96.00"' in info
    assert 'hermetic_gpu_cc{uuid="GPU-0"} 1' in lines
    assert 'hermetic_gpu_devtools{uuid="GPU-0"} 0' in lines
    assert "hermetic_gpu_changes 0" in lines


def test_a_revoked_lease_stops_the_model_at_once(house: House) -> None:
    house.loader.length_s = 3600
    slot, _ = house.load()
    house.leases.heard(LeaseEvent(1, "model", (terms(99).jti,)))
    assert slot.state == "READY", "somebody else's lease"
    house.leases.heard(LeaseEvent(2, "chip", (terms(1).jti,)))
    assert house.until_over(slot) == slot.reason == "its lease was revoked: the chip"
    assert house.leases.facts().ended == 1


def test_the_lease_before_the_last_counts_too(house: House) -> None:
    """A renewal's answer may be on its way when the revocation comes."""
    slot, _ = house.load()
    house.keeping.turn_until(lambda: len(house.records("lease.renewed")) >= 2)
    house.leases.heard(LeaseEvent(1, "model", (terms(1).jti,)))
    house.until_over(slot)


def test_a_lease_that_was_revoked_while_its_model_was_loading_never_serves(house: House) -> None:
    house.leases.heard(LeaseEvent(1, "server", (terms(1).jti,)))
    slot, told = house.load()
    house.keeping.turn_until(lambda: bool(told.outcomes))
    assert slot.state == "UNAVAILABLE"
    assert "its lease was revoked: the server" in slot.reason
    assert [worker.ended for worker in house.loader.workers] == ["unloaded"]


@pytest.mark.parametrize("away", [False, True])
def test_without_leases_of_the_broker_they_are_emulated_and_said_to_be(away: bool) -> None:
    house = House(Leasing(offered=False))
    try:
        if away:
            house.loader.refusals += [BrokerUnreachableError("away")] * 100
        slot, _ = house.load()
        facts = house.leases.facts()
        assert facts.workers[0].state == "not offered by broker"
        if away:
            assert house.until_over(slot) == "its lease has run out: the broker is away"
        else:
            house.keeping.turn_until(lambda: len(house.records("lease.renewed")) >= 3)
            assert {fields["lease"] for fields in house.records("lease.renewed")} == {"not offered by broker"}
            assert slot.state == "READY"
    finally:
        house.leases.stopped = True
        house.keeping.loop.close()


def test_a_log_that_went_back_is_recorded_and_counted(house: House) -> None:
    slot, _ = house.load()
    house.loader.on_log_fault("the broker's log has gone back")
    house.keeping.turn_until(lambda: bool(house.records("broker.log-fault")))
    assert house.records("broker.log-fault") == [{"reason": "the broker's log has gone back"}]
    assert house.leases.facts().log_faults == 1
    assert slot.state == "READY"


def test_metrics_say_it(house: House) -> None:
    house.load()
    house.leases.connected(connected=True)
    facts = Facts(profile="demo", waived=(), epoch=1, epochs_refused=0, front_ends=1, front_ends_lost=0, models=(),
                  leases=house.leases.facts())  # fmt: skip
    lines = render(Page(tally=Tally(), facts=facts)).splitlines()
    assert next(line for line in lines if line.startswith("hermetic_lease_state{")).endswith('state="held"} 1')
    assert "hermetic_lease_feed_connected 1" in lines
    assert house.records("lease.feed") == [{"connected": True}]


def test_callers_are_told_plainly() -> None:
    status = status_of(LeaseEndedError("its lease was revoked: the model"))
    assert status.code == Code.UNAVAILABLE
    assert status.details.startswith("the model's lease is over: it is not served here any more (id ")
    assert "revoked" not in status.details
