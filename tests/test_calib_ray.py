"""Ray: seats are planned without a cluster; the rest runs on one that is started, if Ray is installed."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from calib.data.sample import Sample
from calib.errors import OptionError, RunError
from calib.executors import Work, WorkerError, make_executor
from calib.executors.ray_cluster import RayExecutor, plan_seats
from calib.measure.spec import RunnerSpec
from calib.record import Record
from calib.settings import REFERENCE, Setting
from runtime.errors import BackendError
from tests.calib_runner_double import SETTINGS, OrderlyRunner, no_backend, samples, stillborn, the_spec

# Ray leaves sockets and its own log files to the end of the process.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray")


@pytest.mark.parametrize(
    ("nodes", "threads", "workers", "plan"),
    [
        ([4], None, None, (1, 4)),
        ([4, 8], None, None, (1, 12)),
        ([4], None, 2, (2, 2)),
        ([4, 8], None, 2, (6, 1)),
        ([4, 8], None, 1, (8, 1)),
        ([4], None, 9, (1, 4)),
        ([4, 3], 2, None, (2, 3)),
        ([4, 3], 2, 2, (2, 2)),
        ([4, 3, 0], 3, None, (3, 2)),
    ],
)
def test_seats(nodes: list[int], threads: int | None, workers: int | None, plan: tuple[int, int]) -> None:
    assert plan_seats(nodes, threads, workers) == plan


@pytest.mark.parametrize("nodes", [[2, 4], []])
def test_no_node_is_large_enough(nodes: list[int]) -> None:
    with pytest.raises(
        OptionError,
        match=rf"^a worker has 5 threads, but the largest node of the cluster has {max(nodes, default=0)} "
        "cores: ask for fewer threads$",
    ):
        plan_seats(nodes, 5, None)


def test_options_choose_ray() -> None:
    assert isinstance(make_executor(None, "auto"), RayExecutor)
    assert isinstance(make_executor(3, "local"), RayExecutor)


def test_without_ray_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match=r"needs the package ray.*pip install 'fopru-edge\[ray\]'"):
        list(make_executor(None, "local", OrderlyRunner).run(the_spec(tmp_path / "work"), works_of("answer")))


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", ".*Connection refused"),
        ("ray://127.0.0.1:1", ".*Connection refused"),
        ("host:port", "Port could not be cast to integer value as 'port'"),
        ("auto", "no instance is running"),
    ],
)
def test_no_cluster_at_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, why: str
) -> None:
    def init(**options: object) -> None:
        assert options["address"] == "auto"  # of the others it is known before
        raise ConnectionError("no instance is running")

    alone = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", alone)
    with pytest.raises(
        RunError,
        match=rf"^no Ray cluster answers at '{address}' \({why}\): start one, or leave --ray out$",
    ):
        list(make_executor(None, address, OrderlyRunner).run(the_spec(tmp_path / "work"), works_of("answer")))


def works_of(*prompts: str) -> list[Work]:
    return [Work(sample, SETTINGS) for sample in samples(*prompts).samples]


def untimed(results: Sequence[Sequence[Record]]) -> set[Record]:
    return {replace(record, vision=0.0, prefill=0.0, ttft=0.0) for records in results for record in records}


class PictureReader:
    """A runner whose text says how it got its pictures."""

    def __init__(self, spec: RunnerSpec) -> None:
        pass

    def run(self, sample: Sample, settings: Sequence[Setting]) -> list[Record]:
        """One record per setting."""
        return [Record(sample.name, setting, text=repr(sample.images)) for setting in settings]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster on this machine with two cores, whatever it has."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def on_ray(spec: RunnerSpec, works: Sequence[Work], runner: Any = OrderlyRunner) -> list[list[Record]]:
    with make_executor(None, "auto", runner) as executor:
        return list(executor.run(spec, works))


def test_ray_gives_what_one_process_gives(cluster: Any, tmp_path: Path) -> None:
    works = works_of(*["answer"] * 5)
    spread = on_ray(the_spec(tmp_path / "a", 1), works)
    alone = list(make_executor(1, None, OrderlyRunner).run(the_spec(tmp_path / "b", 1), works))
    assert len(spread) == 5
    assert untimed(spread) == untimed(alone)
    assert f".{os.getpid()}" not in {path.suffix for path in (tmp_path / "a").iterdir()}
    assert cluster.is_initialized()  # it was there before, and stays


def test_pictures_travel_with_the_sample(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"content")
    sample = Sample("a", (tmp_path / "a.png", b"bytes", tmp_path / "b.png"), "?", None, "", "")
    ((record,),) = on_ray(the_spec(tmp_path / "work"), [Work(sample, (REFERENCE,))], PictureReader)
    assert record.text == repr((b"content", b"bytes", tmp_path / "b.png"))


def test_nothing_to_do_needs_no_cluster(tmp_path: Path) -> None:
    assert on_ray(the_spec(tmp_path / "work"), []) == []


def test_a_killed_actor_is_replaced_and_its_sample_tried_again(cluster: Any, tmp_path: Path) -> None:
    works = works_of("answer", "die once", "answer", "die once", "answer")
    spread = on_ray(the_spec(tmp_path / "work", 1), works)
    alone = list(make_executor(1, None, OrderlyRunner).run(the_spec(tmp_path / "work", 1), works))
    assert len(spread) == 5
    assert untimed(spread) == untimed(alone)


def test_a_sample_that_kills_its_actor_twice_has_an_error(cluster: Any, tmp_path: Path) -> None:
    results = on_ray(the_spec(tmp_path / "work"), works_of("answer", "die", "refuse"))
    errors = {record.sample: record.error for records in results for record in records}
    assert errors == {
        "s0": None,
        "s1": "the worker that measured it died, 2 times: is memory short?",
        "s2": "the prompt is refused: ask something else",
    }


def test_faults_and_refusals_come_through(cluster: Any, tmp_path: Path) -> None:
    spec = the_spec(tmp_path / "work")
    with pytest.raises(WorkerError, match="measuring s0 failed with ZeroDivisionError: nothing by nothing"):
        on_ray(spec, works_of("break"))
    with pytest.raises(BackendError, match=r"^backend .onnxruntime. is not there"):
        on_ray(spec, works_of("answer"), no_backend)
    with pytest.raises(RunError, match=r"3 workers died before .* anything, and the last died"):
        on_ray(spec, works_of("answer"), stillborn)


def test_closing_ends_the_actors(cluster: Any, tmp_path: Path) -> None:
    spec = the_spec(tmp_path / "work", 1)
    results = make_executor(None, "auto", OrderlyRunner).run(spec, works_of("answer", "gate", "gate"))
    assert next(results)[0].sample == "s0"
    results.close()
    again = on_ray(the_spec(tmp_path / "again", 2), works_of("answer"))  # both cores are free
    assert len(again) == 1


def begin_a_cluster(work: Path, answer: Any) -> None:
    """In a process of its own, since Ray is once per process."""
    import ray

    with make_executor(1, "local", OrderlyRunner) as executor:
        results = [list(executor.run(the_spec(work, 1), works_of("answer"))) for _ in range(2)]
        inside = ray.is_initialized()
    answer.send((list(map(len, results)), inside, ray.is_initialized()))


def in_a_process(target: Any, work: Path) -> Any:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(work, theirs))
    process.start()
    theirs.close()
    said = ours.recv()
    process.join()
    ours.close()
    return said


def test_a_cluster_of_its_own_is_begun_and_ended(cluster: Any, tmp_path: Path) -> None:
    assert in_a_process(begin_a_cluster, tmp_path / "work") == ([1, 1], True, False)
