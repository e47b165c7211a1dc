"""The state of an ensemble in the repository: it has no worker, and is ready when the models of all its steps are."""

from collections.abc import Iterable

from hermetic.enclave.model_description import ModelDescription
from hermetic.server.ensemble_fit import NotThere, misfits
from hermetic.server.front_ends import FrontEnd
from hermetic.server.generation import Generation
from hermetic.server.links import ready_frame
from hermetic.server.repository import Repository, Slot

__all__ = ["EnsembleState", "composing_models", "introduce"]


class EnsembleState:
    """Looks at the models of an ensemble's steps whenever it is asked: they come and go by themselves."""

    def __init__(self, repository: Repository, generation: Generation) -> None:
        self._repository = repository
        self._description = generation.description()

    def why_not(self) -> str:
        """Return why requests cannot be served now; "" where they can."""
        return "; ".join(misfits(self._description, self._serving, self._known))

    def coming(self) -> bool:
        """Whether one of its models is just being loaded."""
        ensemble = self._description.configuration.ensemble
        steps = ensemble.steps if ensemble is not None else ()
        slots = [slot for step in steps for slot in self._slots(step.model, step.version)]
        return any(slot.coming is not None for slot in slots)

    def _slots(self, name: str, version: int) -> list[Slot]:
        shelf = self._repository.shelf(name)
        slots = shelf.slots if shelf is not None else {}
        return [slot for number, slot in sorted(slots.items()) if version in (0, number)]

    def _serving(self, name: str, version: int) -> ModelDescription:
        for slot in reversed(self._slots(name, version)):
            if slot.current is not None and slot.current.alive:
                return slot.current.description()
        raise NotThere(f"version {version} is not loaded" if version else "no version is loaded")

    def _known(self, name: str, version: int) -> ModelDescription:
        for slot in reversed(self._slots(name, version)):
            generation = slot.current or slot.coming
            if generation is not None:
                return generation.description()
        raise NotThere("not loaded")


def introduce(generation: Generation, repository: Repository, front_ends: Iterable[FrontEnd]) -> None:
    """Tell front ends of an ensemble, and have its state follow its models'."""
    state = EnsembleState(repository, generation)
    generation.why_not, generation.waits = state.why_not, state.coming
    for front_end in front_ends:
        front_end.send(ready_frame(generation))


def composing_models(repository: Repository, name: str) -> list[str]:
    """Return the names of all models that the files of an ensemble rest on, through ensembles among them too."""
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        shelf = repository.shelf(waiting.pop())
        for file in shelf.files().values() if shelf is not None else ():
            ensemble = file.manifest.configuration.ensemble
            for step in ensemble.steps if ensemble is not None else ():
                if step.model not in found and step.model != name:
                    found[step.model] = None
                    waiting.append(step.model)
    return list(found)
