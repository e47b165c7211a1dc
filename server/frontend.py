"""A front end, as a process: `python -m hermetic.server.frontend <control descriptor>`, started by the supervisor.

    1  everything is imported; the first frame is `Start`, with serving key, settings and counters in memfds
    2  TLS is proved in memory: 1.3 only; this also makes OpenSSL read what it needs from files, once
    3  locked down: own uid, no files, no devices, no capabilities
    4  the transport binds
    5  locked down further: no further socket, connection, thread or process; `Listening`
    6  served until `Drain` or the supervisor's end; what was accepted is answered, buffers are wiped
    7  the last records are durable; `Drained`; the end

Nothing here knows of a request; that is application.py.
"""

import gc
import logging
import os
import resource
import signal
import sys
import time
from functools import partial
from typing import Final, NoReturn

from hermetic.enclave import zero_on_free
from hermetic.enclave.channel import Channel
from hermetic.enclave.isolation.lockdown import (
    FRONT_END_FILES_LIMIT,
    Room,
    lock_front_end_after_listening,
    lock_front_end_before_threads,
)
from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds
from hermetic.errors import BorderError, ConfigurationError, HermeticError
from hermetic.server import documents
from hermetic.server.application import SERVING_KEY_LIMIT, FrontEnd
from hermetic.server.counters import Row, map_own_row
from hermetic.server.http2.server import DESCRIPTORS_OF_ITS_OWN, Http2Server
from hermetic.server.http2.tls import ServingCredentials, check_binding
from hermetic.server.messages import Drained, Listening, Start
from hermetic.server.reader import Reader
from hermetic.server.settings import FRONT_END_THREADS, FrontEndSettings

LAST_RECORDS_S: Final = 10.0  # seconds for the last records to become durable
MICROSECONDS: Final = 1e6
COLLECT_AFTER: Final = 50_000  # new objects between two looks for cycles


def main(arguments: list[str]) -> int:
    """Run a front end; return its exit status: 0 after `Drain`, 1 otherwise."""
    logging.basicConfig(level=logging.WARNING, format="front end %(process)d: %(levelname)s: %(message)s")
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the supervisor decides: it sends Drain
        signal.signal(ignored, signal.SIG_IGN)
    supervisor = Channel.of_descriptor(int(arguments[0]))
    try:
        settings, key, row = _receive_start(supervisor)
        zeroing = zero_on_free.status()
        chain = settings.certificate_chain.encode()
        check_binding(key, chain)
        supervisor.settimeout(0)
        front_end = FrontEnd(settings, supervisor, row)
        _check_descriptors(settings.epoch.limits.connections)
        layers = lock_front_end_before_threads(_room(settings), settings.port)
        credentials = ServingCredentials(key, chain, settings.epoch.authorities)
        wipe_immutable_bytes_that_nobody_else_holds(key)
        transport = make_transport(settings, credentials, front_end)
        report = lock_front_end_after_listening(layers, zeroing)
        supervisor.send(Listening(port=transport.port, report=report).encode())
    except HermeticError as error:
        logging.getLogger(__name__).error("cannot start: %s", error)  # noqa: TRY400 - it says what to do, a trace does not
        return 1
    front_end.on_new_key = partial(_renew, credentials)
    front_end.epochs.on_authorities = credentials.trust
    front_end.attach(transport, Reader(transport))
    _collect_seldom()
    transport.run()
    front_end.close()
    return _say_goodbye(front_end, supervisor)


def _renew(credentials: ServingCredentials, key: bytes, chain: str) -> None:
    try:
        credentials.renew(key, chain.encode())
    finally:
        wipe_immutable_bytes_that_nobody_else_holds(key)


def _check_descriptors(connections: int) -> None:
    """Raise `ConfigurationError` where the process may not have a descriptor for each connection."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + DESCRIPTORS_OF_ITS_OWN
    most = FRONT_END_FILES_LIMIT if most == resource.RLIM_INFINITY else min(most, FRONT_END_FILES_LIMIT)
    if wanted > most:
        raise ConfigurationError(
            f"limits.connections: {connections} connections want {wanted} descriptors, got {most} (RLIMIT_NOFILE)"
        )


def _collect_seldom() -> None:
    """Let the cycle collector look less often, and not at what lives as long as the process.

    A request leaves no cycles behind; looking for them after every 700 objects was a tenth of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def make_transport(settings: FrontEndSettings, credentials: ServingCredentials, front_end: FrontEnd) -> Http2Server:
    """Return the transport, bound to its port."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return Http2Server(
        f"{host}:{settings.port}",
        credentials,
        settings.epoch.limits,
        front_end,
        reuse_port=settings.reuse_port,
        spin_s=settings.spin_us / MICROSECONDS,
    )


def _receive_start(supervisor: Channel) -> tuple[FrontEndSettings, bytes, Row | None]:
    frame, descriptors = supervisor.receive()
    try:
        Start.decode(frame)
        if len(descriptors) not in (2, 3):
            raise BorderError(f"start: wanted two or three descriptors, got {len(descriptors)}")
        key = os.pread(descriptors[0], SERVING_KEY_LIMIT, 0)
        settings = documents.decoded(documents.read(descriptors[1]), FrontEndSettings)
        return settings, key, map_own_row(descriptors[2]) if len(descriptors) > 2 else None  # noqa: PLR2004 - as above
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _room(settings: FrontEndSettings) -> Room:
    limits = settings.epoch.limits
    return Room(settings.uid, settings.gid, limits.front_end_memory_bytes, FRONT_END_THREADS, settings.waived)


def _say_goodbye(front_end: FrontEnd, supervisor: Channel) -> int:
    """Have the last records written, then say `Drained`."""
    if front_end.supervisor_lost:
        return 1
    deadline = time.monotonic() + LAST_RECORDS_S
    try:
        while front_end.journal.waiting and time.monotonic() < deadline:
            front_end.journal.flush()
            supervisor.settimeout(max(0.01, deadline - time.monotonic()))
            front_end.handle(*supervisor.receive())
        supervisor.settimeout(LAST_RECORDS_S)
        answered = sum(front_end.gate.ended().values())
        supervisor.send(Drained(answered=answered, failed=front_end.failed_in_drain).encode())
    except (HermeticError, OSError) as error:
        logging.getLogger(__name__).error("the last records: %s", error)  # noqa: TRY400 - the text says it
        return 1
    return 0 if not front_end.journal.waiting else 1


def end(arguments: list[str]) -> NoReturn:
    """Run a front end and end the process at once: nothing is left that anyone waits for."""
    status = main(arguments)
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    end(sys.argv[1:])
