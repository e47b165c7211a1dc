"""What the dispatcher knows of a request: rows to copy in, and someone who waits for the answer."""

from abc import abstractmethod
from collections.abc import Sequence

from mypy_extensions import mypyc_attr

from hermetic.errors import HermeticError
from hermetic.server.contents import Buffer
from hermetic.server.outputs import Output
from hermetic.server.slots import NO_WISHES, Entry, Key, Wishes
from hermetic.server.wiping import wipe


@mypyc_attr(allow_interpreted_subclasses=True)
class Work(Entry):
    """A request between its arrival and its answer. `raw`: the bytes of each input, until they are copied."""

    __slots__ = ("raw",)

    def __init__(self, key: Key, rows: int, raw: Sequence[Buffer], arrived: float, wishes: Wishes = NO_WISHES) -> None:
        super().__init__(key, rows, [len(data) for data in raw], arrived, wishes)
        self.raw = raw

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The whole shape of each input, as the request has it; (0,) of one that is absent."""
        return ()

    @property
    def tenant(self) -> str:
        """Whose request it is, where that is not what its key says."""
        return self.key.tenant

    @property
    def identifier(self) -> bytes:
        """The id that the caller gave the request, UTF-8."""
        return b""

    def forget_rows(self) -> None:
        """Let go of the rows; those that were copied out of a buffer are overwritten."""
        for data in self.raw:
            if isinstance(data, bytearray):
                wipe(memoryview(data))
        self.raw = ()

    @abstractmethod
    def copied(self) -> None:
        """Take note that the rows are in shared memory: the request's own bytes are not needed any more."""

    @abstractmethod
    def answer(self, outputs: Sequence[Output], total_rows: int, started: float) -> None:
        """Answer from the outputs of the whole batch; this request's rows start at `row`."""

    @abstractmethod
    def fail(self, error: HermeticError) -> None:
        """Answer with `error`."""
