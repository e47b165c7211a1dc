"""How many rows a batch takes where several instances share a model."""

import pytest

from hermetic.server.batcher import Batcher
from hermetic.server.share import Share
from hermetic.server.slots import Entry, Key, Slot


def test_it_is_a_part_of_the_most_that_was_at_hand_in_two_rounds() -> None:
    share = Share()
    assert share.rows(4) == 1
    for rows in (3, 9, 5):
        share.saw(rows)
    assert share.rows(4) == 3
    share.ran(2)  # the first round is over
    share.saw(2)
    share.ran(2)
    assert share.rows(4) == 3
    share.ran(2)
    assert share.rows(4) == 1


def entry() -> Entry:
    return Entry(Key("a", ((1,),)), 1, (1,), 0.0)


class Callers:
    """So many at once: each asks again as soon as it has been answered; answers take turns."""

    def __init__(self, batcher: Batcher[Entry], callers: int) -> None:
        self.batcher = batcher
        self.running: list[Slot[Entry]] = []
        for _ in range(callers):
            self.ask()

    def ask(self) -> None:
        self.batcher.submit(entry())
        self.running += self.batcher.take_ready(0.0)

    def answer(self) -> int:
        """Answer the batch that has run for longest; return its rows."""
        slot = self.running.pop(0)
        rows = slot.rows
        self.batcher.release(slot)
        self.batcher.place_waiting()
        self.running += self.batcher.take_ready(0.0)
        for _ in range(rows):
            self.ask()
        return rows


def sizes(callers: int, instances: int, **options: object) -> list[int]:
    """Return the rows of batches once all has settled."""
    values = {"max_rows": 16, "capacities": (100,), "delay_s": 0.0, "waiting_limit": 100, "shared_out": True}
    batcher = Batcher[Entry](**{**values, **options})  # type: ignore[arg-type]
    for _ in range(instances):
        batcher.add_instance(4, 1)
    work = Callers(batcher, callers)
    for _ in range(50):
        work.answer()
    return [work.answer() for _ in range(20)]


@pytest.mark.parametrize(("callers", "rows"), [(1, 1), (4, 1), (8, 2), (32, 8), (48, 12), (90, 16)])
def test_two_instances_take_a_quarter_each_and_have_another_ready(callers: int, rows: int) -> None:
    assert set(sizes(callers, 2)) == {rows}


def test_three_instances_take_a_sixth() -> None:
    assert set(sizes(24, 3)) == {4}


def test_one_instance_takes_what_there_is() -> None:
    assert set(sizes(9, 1)) == {1, 8}


def test_where_batches_are_not_shared_out_one_takes_all_and_the_other_what_is_left() -> None:
    """What sharing out is for: batches of very different sizes cost more, and callers wait for the large ones."""
    assert max(sizes(8, 2, shared_out=False)) > 4
