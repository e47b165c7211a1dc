"""Who counts as bad when links break: each side has a bound, so that neither can have the other replaced for ever."""

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


def test_a_front_end_that_has_worker_after_worker_replaced_is_replaced_itself() -> None:
    ledger = LinkLedger()
    for worker in range(REPLACED_LIMIT):
        assert exhaust(ledger, worker, 100) == REPLACE_WORKER
    assert exhaust(ledger, 50, 100) == REPLACE_FRONT_END
    assert exhaust(ledger, 60, 200) == REPLACE_WORKER, "another front end is believed"


def test_one_model_costs_a_front_end_once_and_not_again_and_again() -> None:
    """A model whose workers lie would end front end after front end, and with them everyone's connections."""
    ledger, worker = LinkLedger(), 0
    verdicts = []
    for front_end in range(100, 105):
        for _ in range(REPLACED_LIMIT + 1):
            worker += 1
            verdicts.append(exhaust(ledger, worker, front_end, float(worker)))
    assert verdicts.count(REPLACE_FRONT_END) == 1
    for worker in range(1000, 1000 + REPLACED_LIMIT):
        exhaust(ledger, worker, 300, model="another")
    assert exhaust(ledger, 2000, 300, model="another") == REPLACE_FRONT_END, "another model is another account"
    late = 2.0 * FORGET_S
    for worker in range(3000, 3000 + REPLACED_LIMIT):
        exhaust(ledger, worker, 400, late)
    assert exhaust(ledger, 4000, 400, late) == REPLACE_FRONT_END


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
