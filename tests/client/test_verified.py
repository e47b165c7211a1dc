"""Which of several servers is used, and what is said where none is."""

from pathlib import Path
from typing import Any, cast

import pytest

from hermetic.client import verified as module
from hermetic.client.handshake import Endpoint, Leaf, Tls
from hermetic.client.judgement import Proof
from hermetic.client.policy import CallerPolicy
from hermetic.client.verified import Prover, Verified
from hermetic.errors import AppraisalError, FailedCheck, HermeticError, NotReadyError

FIRST, SECOND = Endpoint("first", 1), Endpoint("second", 1)
TLS = Tls(Path("ca"), Path("certificate"), Path("key"))
REFUSED = AppraisalError([FailedCheck("tpm.ek", "one", "another")])
AWAY = NotReadyError("away")


class Channel:
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("errors", "raised", "closed"),
    [
        ({FIRST: REFUSED, SECOND: AWAY}, REFUSED, True),
        ({FIRST: AWAY, SECOND: REFUSED}, REFUSED, False),
        ({FIRST: AWAY, SECOND: AWAY}, AWAY, False),
    ],
)
def test_refused_evidence_weighs_more_than_no_answer(
    monkeypatch: pytest.MonkeyPatch, errors: dict[Endpoint, HermeticError], raised: HermeticError, closed: bool
) -> None:
    """Whoever asked last: else a refused server would pass for one that is away, and come back."""

    def fails(endpoint: Endpoint, *_: Any) -> Leaf:
        raise errors[endpoint]

    monkeypatch.setattr(module, "handshake", fails)
    channel: Any = Channel()
    before = Verified(FIRST, Leaf(b"", b"", "first"), channel, cast("Proof", None), 0.0)
    with pytest.raises(HermeticError) as caught:
        Prover([FIRST, SECOND], TLS, cast("CallerPolicy", None), 1.0).again(before)
    assert caught.value is raised
    assert channel.closed is closed
