"""One run: a server, its controls, every moment in turn, and what came out."""

from collections.abc import Callable
from typing import Any, Final

from hermetic.attestation.key_memory import probe
from hermetic.bench.forget.control import plant
from hermetic.bench.forget.models import FORMATS
from hermetic.bench.forget.moments import MOMENTS, live_controls
from hermetic.bench.forget.report import document
from hermetic.bench.forget.stage import PROCESSES, Plan, staged
from hermetic.errors import MeasurementError

__all__ = ["SHORT", "STEPS", "WHOLE", "forget", "refuse_leftovers"]

SMALL: Final = 256  # floats of a row: 1 KiB
LARGE: Final = 1 << 20  # floats of a row: 4 MiB

WHOLE: Final = Plan([(form, columns) for columns in (SMALL, LARGE) for form in FORMATS], (1, 16))
SHORT: Final = Plan([(form, SMALL) for form in FORMATS], (1, 16))
STEPS: Final = len(MOMENTS) + 1


def forget(plan: Plan, on_step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Return the document of a run. Raises `MeasurementError` where a control fails: then there is no document."""
    with staged(plan) as stage:
        on_step("controls")
        live = live_controls(stage)
        planted = [one for process in PROCESSES for one in plant(process, stage.processes()[process][0])]
        seen = []
        for moment in MOMENTS:
            on_step(moment.name)
            seen.append(moment.see(stage))
        return document(stage, seen, planted, live, probe())


def refuse_leftovers(found: dict[str, Any]) -> None:
    """`MeasurementError` where anything was left after any moment."""
    if found["control"]["found"]:
        raise MeasurementError("wanted nothing left, got: " + "; ".join(found["control"]["found"]))
