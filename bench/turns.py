"""How fast is each of several servers, in turns? One process asks them all, over connections that stay open.

A fresh client for each point (load.py) takes a second to come up, has memory laid out in its own way, and differs from
the next by some percent. Here one client has a connection to each server, so that a turn may be as short as a fraction
of a second, and what two servers differ by is theirs. A turn is as in load.py: a closed loop, every answer checked.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from hermetic.bench.child import Child, jobs_from_stdin, say
from hermetic.bench.load import (
    Job,
    described,
    go_without_collections,
    questions_of,
    run,
    said_of,
    server_of,
)
from hermetic.bench.point import Point
from hermetic.bench.target import Target
from hermetic.bench.traffic import METHOD, Question

WARM_UP_S: Final = 0.05  # of each turn: caches, and a front end that sleeps
Asked = tuple[Target, Sequence[Question]]


class Turns:
    """A client of several servers; a context manager that ends it."""

    def __init__(self, servers: Mapping[str, Asked]) -> None:
        """Start it; it connects to each server at that one's first turn."""
        self._child = Child("turns", {name: described(*asked) for name, asked in servers.items()})

    def turn(self, name: str, job: Job) -> Point:
        """Return what the server answers in one turn, errors and wrong answers counted in it; one connection."""
        self._child.tell({"server": name, "job": {part: getattr(job, part) for part in Job.__slots__}})
        return Point(**self._child.hear())

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._child.__exit__(kind, error, trace)


def main() -> None:
    """Take the servers from the first line of stdin and a turn from each further one; write a point for each turn.

    A server may say how many `connections` it is asked over, each by a thread; one unless it does.
    """
    from hermetic.bench.grpc_calls import Calls  # not at the top: the parent, which only starts this, loads no gRPC

    jobs = jobs_from_stdin()
    servers = next(jobs)
    questions = {name: questions_of(document) for name, document in servers.items()}
    connections = {
        name: [Calls(server_of(document), METHOD) for _ in range(document.get("connections", 1))]
        for name, document in servers.items()
    }
    go_without_collections()
    for told in jobs:
        name = told["server"]
        say(said_of(run(connections[name], servers[name]["processes"], questions[name], Job(**told["job"]))))
    for several in connections.values():
        for calls in several:
            calls.close()


if __name__ == "__main__":
    main()
