"""What a supervisor and a worker say: every kind is told from every other."""

from hermetic.enclave import messages
from hermetic.enclave.control_frames import Frame


def test_no_two_kinds_are_alike() -> None:
    kinds = [
        value.kind
        for value in vars(messages).values()
        if isinstance(value, type) and issubclass(value, Frame) and value is not Frame
    ]
    assert len(kinds) == len(set(kinds)) == 13
