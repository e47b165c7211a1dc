"""Who counts as bad when links break: each side has a bound, so that neither can have the other replaced for ever."""

from itertools import count

from hermetic.server.link_ledger import FORGET_S, RENEWAL_DELAYS_S, REPLACED_LIMIT, LinkLedger, Verdict

REPLACE_WORKER, REPLACE_FRONT_END = Verdict("replace worker"), Verdict("replace front end")


def exhaust(ledger: LinkLedger, worker: int, front_end: int, now: float = 0.0, model: str = "m") -> Verdict:
    for delay in RENEWAL_DELAYS_S:
        assert ledger.failed(worker, front_end, model, now) == Verdict("renew", delay)
    return ledger.failed(worker, front_end, model, now)


def test_a_link_is_made_anew_later_each_time_and_then_the_worker_is_replaced() -> None:
    assert exhaust(LinkLedger(), worker=1, front_end=100) == REPLACE_WORKER


def test_a_workers_failures_count_whichever_front_end_they_are_with() -> None:
    ledger = LinkLedger()
    verdicts = [ledger.failed(1, 100 + n, "m", 0.0) for n in range(len(RENEWAL_DELAYS_S) + 1)]
    assert verdicts[-1] == REPLACE_WORKER


def test_a_front_end_that_has_worker_after_worker_of_several_models_replaced_is_replaced_itself() -> None:
    ledger = LinkLedger()
    for worker in range(REPLACED_LIMIT):
        assert exhaust(ledger, worker, 100, model="m") == REPLACE_WORKER
    assert exhaust(ledger, 50, 100, model="n") == REPLACE_FRONT_END
    assert exhaust(ledger, 60, 200) == REPLACE_WORKER, "another front end is believed"


def test_one_model_costs_no_front_end() -> None:
    """A model whose workers lie would end front ends, and with them everyone's calls."""
    ledger = LinkLedger()
    for worker in range(50):
        assert exhaust(ledger, worker, 100, float(worker)) == REPLACE_WORKER


def test_the_same_models_cost_a_front_end_once_and_not_again_and_again() -> None:
    ledger = LinkLedger()

    def verdicts(front_end: int, now: float, models: str) -> list[Verdict]:
        return [
            exhaust(ledger, next(workers), front_end, now, model=models[at % 2]) for at in range(2 * REPLACED_LIMIT)
        ]

    workers = count()
    assert verdicts(100, 0.0, "mn").count(REPLACE_FRONT_END) == 1
    assert REPLACE_FRONT_END not in verdicts(101, 1.0, "mn")
    assert REPLACE_FRONT_END not in verdicts(102, 2.0, "mo"), "one of them has had its share"
    assert verdicts(103, 3.0, "pq").count(REPLACE_FRONT_END) == 1, "others are another account"
    assert verdicts(104, 2.0 * FORGET_S, "mn").count(REPLACE_FRONT_END) == 1


def test_what_is_long_ago_does_not_count() -> None:
    ledger = LinkLedger()
    for n in range(20):
        assert ledger.failed(1, 100, "m", n * FORGET_S) == Verdict("renew", RENEWAL_DELAYS_S[0])


def test_who_has_ended_is_forgotten() -> None:
    """Process ids come again."""
    ledger = LinkLedger()
    exhaust(ledger, 1, 100)
    ledger.forget(1)
    assert ledger.failed(1, 100, "m", 0.0) == Verdict("renew", RENEWAL_DELAYS_S[0])
