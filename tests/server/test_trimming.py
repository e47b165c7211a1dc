"""When memory is given back."""

from hermetic.server.trimming import WORTH_TRIMMING, Trimmer


def test_after_much_and_then_little() -> None:
    trimmer = Trimmer()
    looks = [0, 1000, WORTH_TRIMMING - 1, 0, WORTH_TRIMMING, WORTH_TRIMMING // 2, WORTH_TRIMMING // 4, 0, 0]
    assert [trimmer.look(size) for size in looks] == [False, False, False, False, False, False, True, False, False]
