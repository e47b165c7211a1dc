"""The good client, as a process: one small request every `interval_s` over one connection; says how each went.

It asks at its own pace, whatever the server does, so a server that stands still is seen by all the calls it delays.
"""

import time
from pathlib import Path

import grpc

from hermetic.bench.child import job_from_stdin, say
from hermetic.bench.flood.wire import Door

CALL_TIMEOUT_S = 20.0
LATE_S = 20.0  # seconds to wait for the last answers


def main() -> None:
    """Ask until `end` (monotonic seconds); say a list of (when it was due, seconds it took, status)."""
    job = job_from_stdin()
    door = Door(*job["door"])
    request = bytes.fromhex(job["request"])
    samples: list[tuple[float, float, str]] = []
    with grpc.secure_channel(f"{door.host}:{door.port}", _credentials(door)) as channel:
        call = channel.unary_unary(job["method"])
        call(request, timeout=CALL_TIMEOUT_S)
        say({"ready": True})
        due, asked = time.monotonic(), 0
        while due < job["end"]:
            time.sleep(max(0.0, due - time.monotonic()))
            asked += 1
            future = call.future(request, timeout=CALL_TIMEOUT_S)
            future.add_done_callback(lambda done, due=due: samples.append(_sample(due, done)))
            due += job["interval_s"]
        give_up = time.monotonic() + LATE_S
        while len(samples) < asked and time.monotonic() < give_up:
            time.sleep(0.01)
    say({"samples": sorted(samples), "unanswered": asked - len(samples)})


def _sample(due: float, done: grpc.Future) -> tuple[float, float, str]:
    return due, time.monotonic() - due, done.code().name


def _credentials(door: Door) -> grpc.ChannelCredentials:
    authority, key, certificate = (Path(path).read_bytes() for path in (door.authority, door.key, door.certificate))
    return grpc.ssl_channel_credentials(authority, key, certificate)


if __name__ == "__main__":
    main()
