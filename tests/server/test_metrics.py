"""The metrics page: Triton's names, valid text, labels that cannot break out."""

from hermetic.server.awaited import Awaited
from hermetic.server.batcher import Batcher
from hermetic.server.dispatch import Dispatcher
from hermetic.server.messages import ModelReady
from hermetic.server.metrics import Counts, render
from hermetic.server.models import ServedModel
from hermetic.server.shaping import Shaping
from hermetic.server.statistics import ModelStatistics
from hermetic.server.status import Code
from hermetic.server.work import Work
from tests.server.far_side import description


def served(name: str) -> ServedModel:
    ready = ModelReady(
        description=description(name), instance=0, buffers=2, batches_in_flight=1, variable_tensor_bytes=1,
        max_queue_delay_us=0, requests_waiting=1,
    )  # fmt: skip
    statistics = ModelStatistics()
    batcher: Batcher[Work] = Batcher(1, (1,), 0.0, 1)
    dispatcher = Dispatcher(
        batcher, statistics, Awaited(), lambda _: None, lambda *_: None, shaping=Shaping(batched=True)
    )
    return ServedModel(ready, dispatcher, statistics)


def test_the_page() -> None:
    model = served('evil"\nname\\')
    model.statistics.executed(4, 2, (1000, 2000, 3000), 5)
    model.statistics.succeeded(9000, 1000)
    model.statistics.failed(1000, "CANCELED")
    counts = Counts({("/a/b", Code.OK): 3}, 1, 2, 3, 4, draining=True)
    page = render([model], counts)
    label = r'model="evil\"\nname\\",version="1"'
    assert f"nv_inference_request_success{{{label}}} 1\n" in page
    assert f"nv_inference_count{{{label}}} 4\n" in page
    assert f"nv_inference_exec_count{{{label}}} 1\n" in page
    assert f"nv_inference_compute_infer_duration_us{{{label}}} 4\n" in page
    assert f'nv_inference_request_failure{{{label},reason="CANCELED"}} 1\n' in page
    assert 'hermetic_requests{method="/a/b",status="OK"} 3\n' in page
    assert "hermetic_draining 1\n" in page
    names = [line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert all(line.startswith("#") or len(line.rsplit(" ", 1)) == 2 for line in page.splitlines())


def test_statistics_as_the_protocol_has_them() -> None:
    statistics = ModelStatistics()
    statistics.executed(4, 2, (10, 20, 30), 5)
    message = statistics.message("m", 3)
    assert (message.inference_count, message.execution_count, message.last_inference) == (4, 1, 5)
    assert (message.inference_stats.compute_infer.count, message.inference_stats.compute_infer.ns) == (2, 40)
    assert (message.batch_stats[0].batch_size, message.batch_stats[0].compute_infer.ns) == (4, 20)
