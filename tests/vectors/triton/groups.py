"""All calls that are recorded and played, by group: those of calls.py and of edges.py."""

from collections.abc import Callable, Mapping
from typing import Final

from tests.vectors.triton import calls, edges
from tests.vectors.triton.calls import Case

GROUPS: Final[Mapping[str, Callable[[], list[Case]]]] = {**calls.GROUPS, **edges.GROUPS}
