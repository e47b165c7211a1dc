"""When memory is given back."""

from hermetic.server.trimming import REST_S, SETTLED_S, WORTH_TRIMMING, Trimmer


def looks(trimmer: Trimmer, *sizes_and_moments: tuple[int, float]) -> list[bool]:
    return [trimmer.look(size, moment) for size, moment in sizes_and_moments]


def test_after_much_and_then_little() -> None:
    sizes = [0, 1000, WORTH_TRIMMING - 1, 0, WORTH_TRIMMING, WORTH_TRIMMING // 2, WORTH_TRIMMING // 4, 0, 0, 0]
    moments = [SETTLED_S * number for number in range(len(sizes))]
    wanted = [False] * 7 + [True, False, False]
    assert looks(Trimmer(), *zip(sizes, moments, strict=True)) == wanted


def test_not_while_it_is_being_freed() -> None:
    trimmer = Trimmer()
    assert looks(trimmer, (WORTH_TRIMMING, 0.0), (0, 10.0), (0, 10.0 + SETTLED_S - 0.01)) == [False] * 3
    assert looks(trimmer, (WORTH_TRIMMING // 2, 11.5), (0, 12.0), (0, 12.5)) == [False] * 3  # more came in between
    assert trimmer.look(0, 12.0 + SETTLED_S)


def test_seldom_however_often_much_comes_and_goes() -> None:
    trimmer = Trimmer()
    waves = [(WORTH_TRIMMING, 0.0), (0, 0.5), (0, 0.5 + SETTLED_S)]
    all_looks = [(size, start + after) for start in range(0, 60, 3) for size, after in waves]
    times = [moment for size, moment in all_looks if trimmer.look(size, moment)]
    assert len(times) == 2
    assert times[1] - times[0] >= REST_S
