"""Mode `poll`: what appears and vanishes is loaded, takes over and goes, and no request is refused on the way."""

import contextlib
import json
import shutil
from collections.abc import Iterator

import pytest
from tritonclient.utils import InferenceServerException

from tests.flows.networks import dense
from tests.flows.scene import check_answers, scene
from tests.flows.test_repository_explicit import Asking, Cast

POLL = ("[log]", '[repository]\nmode = "poll"\nfolder = "models"\npoll_interval_s = 0.1\n\n[log]')


@pytest.fixture(scope="module")
def cast() -> Iterator[Cast]:
    """The first version serves; the second is sealed and lies aside."""
    with scene("sample") as place:
        quick = dense(place.workshop, "quick", seed=41)
        newer = dense(place.workshop, "quick", seed=42, version=2)
        for network in (quick, newer):
            place.seal(network)
        (place.models / "quick-2.sealed").rename(place.workshop / "quick-2.sealed")
        with place.serve([], replace=[POLL]) as served, served.client(operator=True) as operator:
            served.wait_until_ready(place.models / "quick-1.sealed")
            yield Cast(place, served, quick, newer, quick, operator)


def test_nobody_loads_or_unloads_over_the_network(cast: Cast) -> None:
    """Triton's status and words."""
    for ask in (cast.operator.load_model, cast.operator.unload_model):
        with pytest.raises(InferenceServerException, match="model load / unload is not allowed") as caught:
            ask("quick")
        assert caught.value.status() == "StatusCode.UNAVAILABLE"


def test_half_a_file_is_not_believed_and_changes_nothing(cast: Cast) -> None:
    whole = (cast.scene.workshop / "quick-2.sealed").read_bytes()
    moment = cast.served.ear.now
    file = cast.scene.models / "quick-2.sealed"
    file.write_bytes(whole[: len(whole) // 2])
    assert "SealedModelError: payload-truncated" in cast.served.wait_until_refused(file, moment)
    assert cast.index("quick") == {1: ("READY", "")}
    file.unlink()
    cast.wait_for(lambda: file.name not in {m.name for m in cast.operator.get_model_repository_index().models})


def test_a_version_that_appears_takes_over_without_a_refused_request(cast: Cast) -> None:
    file = cast.scene.models / "quick-2.sealed"
    with Asking(cast.served, cast.newer, also=(cast.quick,)) as asking:
        before = asking.answered
        shutil.copy(cast.scene.workshop / "quick-2.sealed", file)
        cast.wait_for(lambda: cast.index("quick").get(2, ("",))[0] == "READY")
        cast.wait_for(lambda: cast.index("quick")[1][0] == "UNAVAILABLE")
        cast.wait_for(lambda: asking.answered > before)
    assert asking.errors == []
    assert cast.index("quick")[1][1] == "unloaded: not in the version policy (latest 1)"
    with cast.served.client() as client:
        check_answers(client, cast.newer)
        with pytest.raises(InferenceServerException):
            check_answers(client, cast.quick, model_version="1")


def test_a_version_that_vanishes_gives_way_to_the_one_before_without_a_refused_request(cast: Cast) -> None:
    with Asking(cast.served, cast.quick, also=(cast.newer,)) as asking:
        (cast.scene.models / "quick-2.sealed").unlink()
        cast.wait_for(lambda: cast.index("quick").keys() == {1})
    assert asking.errors == []
    with cast.served.client() as client:
        check_answers(client, cast.quick)


def test_a_model_whose_last_file_vanishes_is_unloaded_and_comes_back_with_it(cast: Cast) -> None:
    file, aside = cast.scene.models / "quick-1.sealed", cast.scene.workshop / "quick-1.sealed"
    file.rename(aside)
    with contextlib.suppress(InferenceServerException), cast.served.client() as client:
        while client.is_model_ready("quick"):
            pass
    cast.wait_for(lambda: cast.index("quick") == {})
    assert cast.of("quick", "model.unloaded")[-1].fields["wiped"] is True
    aside.rename(file)
    cast.wait_for(lambda: cast.index("quick") == {1: ("READY", "")})
    with cast.served.client() as client:
        check_answers(client, cast.quick)


def test_the_index_is_what_a_stock_client_reads(cast: Cast) -> None:
    shown = cast.operator.get_model_repository_index(as_json=True)
    assert json.loads(json.dumps(shown)) == {"models": [{"name": "quick", "version": "1", "state": "READY"}]}
