"""The asyncio client in the shape of the blocking one, so that each test of a caller holds for both."""

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from hermetic.client import CallerPolicy, Proof, Tls, aio


class LoopClient:
    """A client of `hermetic.client.aio` in an event loop of its own, in a thread; every method blocks."""

    def __init__(self, target: str, tls: Tls, policy: CallerPolicy, **options: float) -> None:
        """Raises what `connect` raises."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self.client = self.run(aio.connect(target, tls, policy, **options))
        except BaseException:
            self._stop()
            raise

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What `work` returns in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def infer(self, *arguments: Any, **options: Any) -> Any:
        return self.run(self.client.infer(*arguments, **options))

    def is_server_live(self) -> bool:
        return bool(self.run(self.client.is_server_live()))

    def verify_now(self) -> Proof:
        proof: Proof = self.run(self.client.verify_now())
        return proof

    @property
    def proof(self) -> Proof:
        proof: Proof = self.client.proof
        return proof

    def close(self) -> None:
        """Nothing of the client's goes on in its loop afterwards; the loop does, until the process ends."""
        self.run(self.client.close())
        left = self.run(self._left())
        assert not left, left

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _left(self) -> list[str]:
        await asyncio.sleep(0)
        return [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
