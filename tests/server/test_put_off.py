"""What is put off runs once, in order, and after what is put off meanwhile has been left for the next time."""

from hermetic.server.put_off import PutOff


def test_in_order_once_and_what_comes_meanwhile_waits() -> None:
    put_off, ran = PutOff(), []
    put_off.add(lambda: ran.append("first"))
    put_off.add(lambda: put_off.add(lambda: ran.append("later")))
    put_off.add(lambda: ran.append("second"))
    assert put_off.run(), "something was put off meanwhile"
    assert ran == ["first", "second"]
    assert not put_off.run()
    assert not put_off.run()
    assert ran == ["first", "second", "later"]


def test_one_that_fails_costs_the_others_nothing() -> None:
    put_off, ran = PutOff(), []

    def fail() -> None:
        raise ValueError("fail")

    put_off.add(fail)
    put_off.add(lambda: ran.append("ran"))
    assert not put_off.run()
    assert ran == ["ran"]
