"""The supervisor's side of leases: renews each worker's, hears what is revoked, and stops models that have none.

Every worker counts its own lease (enclave/lease_timer.py), so nothing here can lengthen one: what is not renewed ends.

    renew     at half of its length, a little earlier by chance, with fresh evidence over a new key of the worker's
    fail      the broker does not answer: again and again, until the worker ends itself at length + grace
    over      the broker says no, or has revoked it, or the GPU under it is another: the generation stops at once,
              whoever asks it is told

A broker without leases is emulated, and said to be: attest and get the key again at the configured interval; the
counting is then this process' alone. It is by CLOCK_BOOTTIME, as a worker's: the loop's own clock stands still while
the machine is suspended. Event loop's thread only, but for the renewal itself.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal

from hermetic.attestation.clock import boottime
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.exchange import LeaseEvent
from hermetic.enclave.supervisor import Worker
from hermetic.errors import BrokerRefusedError, GpuChangedError, HermeticError
from hermetic.server.generation import Generation, Instance
from hermetic.server.loading import Leased, Loaded, Loader
from hermetic.server.metrics import GpuOfHost, LeaseFacts, LeaseOfWorker
from hermetic.server.surroundings import Surroundings

__all__ = ["LeaseKeeper"]

RENEW_FROM: Final = 0.4
RENEW_UNTIL: Final = 0.5
"""When a lease is renewed, as parts of its length: by chance between the two, so that not all come at once."""

AGAIN_PART: Final = 0.05
AGAIN_AT_LEAST_S: Final = 0.2
AGAIN_AT_MOST_S: Final = 60.0
"""When a renewal that failed is tried again: after this part of the length, within these seconds."""

SLICE_S: Final = 1.0
"""Longest wait between two looks at the clock: how late an end is noticed after a suspend."""

SELF_S: Final = 5.0  # after a lease's end, for the worker to have ended itself
ANSWER_S: Final = 30.0  # beyond the longest batch, for a worker to make a key or take a lease
REVOKED_KEPT: Final = 65536  # ids of revoked leases that are remembered: a load may be on its way with one
RECORD_TEXT_LIMIT: Final = 1024  # characters of somebody else's words in one record
FINAL: Final = "PolicyDeny"
"""What the broker's decision is called. Any other refusal may pass: it has restarted, or the evidence was unlucky."""

LeaseState = Literal["held", "grace", "not offered by broker"]


@dataclass(slots=True, eq=False)
class _Ward:
    """One worker and its lease."""

    generation: Generation
    instance: Instance
    worker: Worker
    leased: Leased
    ids: set[str] = field(default_factory=set)

    def state(self, now: float) -> LeaseState:
        if self.leased.terms is None:
            return "not offered by broker"
        return "held" if now < self.leased.renew_by else "grace"


class LeaseKeeper:
    """The leases of every worker that serves."""

    def __init__(self, loader: Loader, around: Surroundings, clock: Callable[[], float] = boottime) -> None:
        """Begin with none. `clock` counts as that of `Leased`."""
        self._clock = clock
        self._loader = loader
        self._loop = around.loop
        self._record = around.record
        loader.on_log_fault = lambda reason: self._loop.post(partial(self._log_fault, reason))
        self._wards: dict[Worker, _Ward] = {}
        self._revoked: dict[str, str] = {}
        self._facts = LeaseFacts()
        self.stopped = False
        self.on_over: Callable[[Generation, str], None] = lambda _generation, _reason: None
        """Stops a generation at once, for this reason."""

    def watch(self, generation: Generation, instance: Instance, loaded: Loaded) -> None:
        """Keep the lease of a worker that serves."""
        leased = loaded.leased
        if leased is None:  # a stand-in's
            return
        ward = self._wards[loaded.worker] = _Ward(generation, instance, loaded.worker, leased)
        self._hold(ward, leased)

    def forget(self, worker: Worker) -> None:
        """It is gone, or going."""
        self._wards.pop(worker, None)

    def heard(self, event: LeaseEvent) -> None:
        """The broker has revoked leases of ours."""
        self._revoked |= dict.fromkeys(event.leases, event.revoked)
        while len(self._revoked) > REVOKED_KEPT:
            self._revoked.pop(next(iter(self._revoked)))
        concerned = [ward for ward in self._wards.values() if ward.ids & set(event.leases)]
        for ward in concerned:
            self._end(ward, f"its lease was revoked: the {event.revoked}")

    def connected(self, *, connected: bool) -> None:
        """The broker's feed of revocations answers, or does not any more."""
        if connected != self._facts.connected:
            self._facts = self._facts.model_copy(update={"connected": connected})
            self._record("lease.feed", {"connected": connected})

    def facts(self) -> LeaseFacts:
        """What the metrics page shows."""
        now = self._clock()
        workers = tuple(
            LeaseOfWorker(
                name=ward.generation.key[0],
                version=ward.generation.key[1],
                instance=ward.instance.number,
                state=ward.state(now),
                left_s=max(0, int(ward.leased.over_at - now)),
            )
            for ward in self._wards.values()
        )
        gpus = tuple(GpuOfHost.model_validate(gpu.facts()) for gpu in self._loader.gpus)
        return self._facts.model_copy(update={"workers": workers, "gpus": gpus})

    def _log_fault(self, reason: str) -> None:
        """The broker's log is not what it was; leases go on: whose log is right is for operators to say."""
        self._count("log_faults")
        self._record("broker.log-fault", {"reason": reason[:RECORD_TEXT_LIMIT]})

    # Renewal

    def _hold(self, ward: _Ward, leased: Leased) -> None:
        """`leased` is in force from now on."""
        ward.leased = leased
        if leased.terms is not None:
            ward.ids.add(leased.terms.jti)
        if revoked := sorted(ward.ids & self._revoked.keys()):
            self._end(ward, f"its lease was revoked: the {self._revoked[revoked[0]]}")
            return
        part = random.uniform(RENEW_FROM, RENEW_UNTIL)  # noqa: S311 - nobody gains by knowing it
        self._at(leased.begun + part * leased.length_s, ward, leased, partial(self._renew, ward, leased))
        # A worker ends itself; one that a model has taken over may not. An emulated lease is counted here alone.
        late = 0.0 if leased.terms is None else SELF_S
        self._at(leased.over_at + late, ward, leased, partial(self._run_out, ward, leased))

    def _at(self, moment: float, ward: _Ward, leased: Leased, event: Callable[[], None]) -> None:
        """Run `event` at `moment` of the clock, unless another lease is in force by then."""
        left = moment - self._clock()
        if left <= 0:
            event()
        elif self._is_current(ward, leased):
            again = partial(self._at, moment, ward, leased, event)
            self._loop.call_at(time.monotonic() + min(left, SLICE_S), again)

    def _is_current(self, ward: _Ward, leased: Leased) -> bool:
        return not self.stopped and self._wards.get(ward.worker) is ward and ward.leased is leased

    def _renew(self, ward: _Ward, leased: Leased) -> None:
        if self._is_current(ward, leased):
            # Not one of the loop's own threads: an end of the server does not wait for the broker.
            threading.Thread(target=self._renew_in_thread, args=(ward, leased), daemon=True).start()

    def _renew_in_thread(self, ward: _Ward, leased: Leased) -> None:
        file = ward.generation.file
        try:
            renewed = self._loader.renew(ward.worker, file.manifest, leased, file.settings.batch_timeout_s + ANSWER_S)
        except HermeticError as error:
            self._loop.post(partial(self._not_renewed, ward, leased, error))
        except Exception as error:  # noqa: BLE001 - a fault here must not leave a lease that nobody renews
            fault = HermeticError(f"{type(error).__name__}: {error}")
            self._loop.post(partial(self._not_renewed, ward, leased, fault))
        else:
            self._loop.post(partial(self._renewed, ward, leased, renewed))

    def _renewed(self, ward: _Ward, before: Leased, leased: Leased) -> None:
        if self._is_current(ward, before):
            self._count("renewals")
            self._record("lease.renewed", {**self._about(ward), **leased.facts()})
            self._hold(ward, leased)

    def _not_renewed(self, ward: _Ward, leased: Leased, error: HermeticError) -> None:
        if not self._is_current(ward, leased):
            return
        self._count("failures")
        self._record("lease.not-renewed", {**self._about(ward), "reason": str(error)[:RECORD_TEXT_LIMIT]})
        if isinstance(error, BrokerRefusedError) and error.variant == FINAL:
            self._end(ward, "its lease was not renewed: the broker's policy refuses")
            return
        if isinstance(error, GpuChangedError) and leased.gpu is not None:
            self._count("gpu_changes")
            self._end(ward, f"its lease was not renewed: {error}")
            return
        again = min(max(leased.length_s * AGAIN_PART, AGAIN_AT_LEAST_S), AGAIN_AT_MOST_S)
        self._at(self._clock() + again, ward, leased, partial(self._renew, ward, leased))

    # The end

    def _run_out(self, ward: _Ward, leased: Leased) -> None:
        if self._is_current(ward, leased):
            self._end(ward, "its lease has run out: the broker is away")

    def _end(self, ward: _Ward, reason: str) -> None:
        if self._wards.pop(ward.worker, None) is not None:
            self._count("ended")
            self._record("lease.over", {**self._about(ward), "reason": reason})
            self.on_over(ward.generation, reason)

    def _count(self, name: Literal["renewals", "failures", "ended", "log_faults", "gpu_changes"]) -> None:
        self._facts = self._facts.model_copy(update={name: getattr(self._facts, name) + 1})

    def _about(self, ward: _Ward) -> dict[str, JsonValue]:
        return {**ward.generation.names(), "instance": ward.instance.number}
