"""Where does a request's time go in the front end? Clocks around functions of the running server, put in by patching.

Each function belongs to a step; its own time is what passed in it less what passed in other timed functions that it
called, less what a clock costs. Of each function's times the longest hundredth is dropped: then another process had the
core. What is not in any of them (the kernel, the loop itself) is the floor variant's.
"""

import functools
import importlib
import json
import sys
import time
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Final

from hermetic.bench.variants.patches import swap, swap_everywhere
from hermetic.errors import MeasurementError

MARK: Final = "bench-steps "
SAMPLES: Final = 100_000  # of each function; later ones are counted only
DROPPED: Final = 0.01  # of the longest times
CALIBRATION: Final = 20_000  # calls of a function that does nothing
REQUESTS: Final = "Journal.request"  # called once for each request

STEPS: Final[dict[str, tuple[str, ...]]] = {
    "TLS": (
        "http2.tls:TlsSession.feed",
        "http2.tls:TlsSession.read",
        "http2.tls:TlsSession.write",
        "http2.tls:TlsSession.take",
    ),
    "HTTP/2 and gRPC": (
        "http2.connection:Connection.readable",
        "http2.reception:Reception.take",
        "http2.connection:Connection.flush",
        "http2.call:Http2Call.reply",
    ),
    "identity and access": (
        "identity:Identities.identify",
        "gate:check_access",
        "gate:Gate.accept",
        "gate:Request.admit",
    ),
    "scan": ("codec:Decoder.decode",),
    "queue": (
        "infer:InferenceService.infer",
        "dispatch:Dispatcher.submit",
        "dispatch:Dispatcher.received",
        "dispatch:Dispatcher._run_ready",
        "worker_link:WorkerLink.copy_in",
    ),
    "reply": ("infer:Inference.answer", "reply:ReplyTemplate.build"),
    "audit": ("audit:Journal.request", "audit:Journal.flush"),
    "wipe": ("infer:wipe_bytes_about_to_be_freed", "worker_link:WorkerLink.wipe_batch"),
    "accounts": (
        "gate:Request.announced",
        "gate:Request.received",
        "gate:Request.sent",
        "gate:Request.closed",
    ),
}
"""Step -> functions, as module:name within hermetic.server. One that is gone is left out; a step without any is not."""

_clock: Final = time.perf_counter_ns


class _Watch:
    """The times of one function."""

    __slots__ = ("calls", "name", "samples")

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0
        self.samples = array("q")


class Clocks:
    """All watches of a process. One thread only: the loop's owner."""

    def __init__(self) -> None:
        self.watches: dict[str, _Watch] = {}
        self._inside = 0  # ns that passed in timed functions which the one that is running has called
        self.cost = 0.0  # ns of one clock, inside and outside

    def around(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return the function with a clock around it."""
        watch = self.watches[name] = _Watch(name)

        @functools.wraps(function)
        def timed(*arguments: object, **named: object) -> object:
            outer, self._inside = self._inside, 0
            begin = _clock()
            try:
                return function(*arguments, **named)
            finally:
                took = _clock() - begin
                watch.calls += 1
                if len(watch.samples) < SAMPLES:
                    watch.samples.append(took - self._inside)
                self._inside = outer + took

        return timed

    def calibrate(self) -> None:
        """Find what a clock itself adds to the function that it is around."""
        nothing = self.around(lambda: None, "calibration")
        for _ in range(CALIBRATION):
            nothing()
        self.cost = _mean(self.watches.pop("calibration").samples)

    def document(self) -> dict[str, Any]:
        """Return, for each function, its calls and its own time in microseconds per request."""
        requests = self.watches["audit:" + REQUESTS].calls
        return {
            "requests": requests,
            "functions": {
                name: {
                    "calls_per_request": round(watch.calls / max(1, requests), 4),
                    "us_per_request": round(self._own(watch) * watch.calls / max(1, requests) / 1000, 3),
                }
                for name, watch in self.watches.items()
            },
        }

    def _own(self, watch: _Watch) -> float:
        return max(0.0, _mean(watch.samples) - self.cost) if watch.samples else 0.0


def _mean(samples: "array[int]") -> float:
    """Return the mean without the longest."""
    kept = sorted(samples)[: max(1, int(len(samples) * (1 - DROPPED)))]
    return sum(kept) / len(kept)


def put_clocks_in() -> None:
    """Put a clock around every function of `STEPS`, and have what they say logged when the front end ends."""
    from hermetic.server import frontend

    clocks = Clocks()
    clocks.calibrate()
    for step, names in STEPS.items():
        found = [name for name in names if _put_in(clocks, name)]
        if not found:
            raise MeasurementError(f"steps: no function of the step {step!r} is there any more: {', '.join(names)}")

    def goodbye(*arguments: object) -> object:
        sys.stderr.write(MARK + json.dumps(clocks.document()) + "\n")
        sys.stderr.flush()
        return real(*arguments)

    real = swap(frontend, "_say_goodbye", goodbye)


def _put_in(clocks: Clocks, name: str) -> bool:
    module_name, _, path = name.partition(":")
    module = importlib.import_module(f"hermetic.server.{module_name}")
    holder_name, _, method = path.rpartition(".")
    holder = getattr(module, holder_name, None) if holder_name else module
    old = None if holder is None else getattr(holder, method, None)
    if holder is None or old is None:
        return False
    if holder_name:
        setattr(holder, method, clocks.around(old, name))
    else:
        swap_everywhere(method, old, clocks.around(old, name))
    return True


def by_step(document: Mapping[str, Any]) -> dict[str, float]:
    """Return step -> microseconds per request, from what a front end has logged."""
    functions = document["functions"]
    return {
        step: round(sum(functions[name]["us_per_request"] for name in names if name in functions), 2)
        for step, names in STEPS.items()
    }
