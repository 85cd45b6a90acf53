"""In-process and worker processes: the same records, and what becomes of workers that die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from calib.data.sample import Sample
from calib.errors import OptionError, RunError
from calib.executors import RunnerFactory, Work, WorkerError, make_executor
from calib.executors.base import cores, sample_runner
from calib.executors.inprocess import InProcessExecutor
from calib.executors.processes import ProcessExecutor
from calib.measure.spec import RunnerSpec
from calib.record import Record
from calib.settings import Setting
from runtime.errors import BackendError
from tests.calib_runner_double import (
    SETTINGS,
    OrderlyRunner,
    broken,
    no_backend,
    samples,
    stillborn,
    the_spec,
)
from tests.interruptible import INTERRUPTIBLE

ROOT = Path(__file__).resolve().parent.parent


class Counting:
    """A runner that counts its calls, as bytes of a cache."""

    def __init__(self, spec: RunnerSpec) -> None:
        self.spec = spec
        self.calls = 0

    def run(self, sample: Sample, settings: Sequence[Setting]) -> list[Record]:
        """One record per setting."""
        self.calls += 1
        return [Record(sample.name, setting, kv_bytes=self.calls) for setting in settings]


KINDS = [1, 2]  # workers: this process, and others


def run_all(
    workers: int, spec: RunnerSpec, works: Sequence[Work], runner: RunnerFactory = OrderlyRunner
) -> list[list[Record]]:
    with make_executor(workers, None, runner) as executor:
        return list(executor.run(spec, works))


def works_of(*prompts: str) -> list[Work]:
    return [Work(sample, SETTINGS) for sample in samples(*prompts).samples]


def untimed(results: Sequence[Sequence[Record]]) -> set[Record]:
    return {replace(record, vision=0.0, prefill=0.0, ttft=0.0) for records in results for record in records}


def errors_of(results: Sequence[Sequence[Record]], sample: str) -> list[str | None]:
    return [record.error for records in results for record in records if record.sample == sample]


def test_options_choose_the_executor() -> None:
    assert isinstance(make_executor(None, None), InProcessExecutor)
    assert isinstance(make_executor(1, None), InProcessExecutor)
    assert isinstance(make_executor(2, None), ProcessExecutor)
    with pytest.raises(OptionError, match=r"^workers is 0: give at least 1$"):
        make_executor(0, None)


def test_the_usual_runner_is_the_one_of_calib_measure(tmp_path: Path) -> None:
    from runtime.errors import BundleError

    with pytest.raises(BundleError, match="bundle"):
        sample_runner(the_spec(tmp_path / "work"))


def test_processes_give_what_one_process_gives(tmp_path: Path) -> None:
    works = works_of(*["answer"] * 5)
    alone = run_all(1, the_spec(tmp_path / "a", 1), works)
    spread = run_all(3, the_spec(tmp_path / "b", 1), works)
    assert [[record.setting for record in records] for records in alone] == [list(SETTINGS)] * 5
    assert untimed(alone) == untimed(spread)
    assert len(spread) == 5
    assert [records[0].sample for records in alone] == ["s0", "s1", "s2", "s3", "s4"]
    assert {path.suffix for path in (tmp_path / "a").iterdir()} == {f".{os.getpid()}"}
    assert f".{os.getpid()}" not in {path.suffix for path in (tmp_path / "b").iterdir()}


@pytest.mark.parametrize(
    ("workers", "asked", "given"), [(1, None, 0), (2, None, max(1, cores() // 2)), (1, 3, 3), (2, 3, 3)]
)
def test_threads_of_a_worker(tmp_path: Path, workers: int, asked: int | None, given: int) -> None:
    results = run_all(workers, the_spec(tmp_path / "work", asked), works_of("answer"))
    assert {record.kv_bytes for record in results[0]} == {given}


@pytest.mark.parametrize("workers", KINDS)
def test_nothing_to_do_makes_no_runner(tmp_path: Path, workers: int) -> None:
    assert run_all(workers, the_spec(tmp_path / "work"), [], no_backend) == []


@pytest.mark.parametrize("workers", KINDS)
def test_what_the_runtime_refuses_becomes_records(tmp_path: Path, workers: int) -> None:
    works = works_of("answer", "refuse", "answer")
    results = run_all(workers, the_spec(tmp_path / "work"), works)
    assert errors_of(results, "s1") == ["the prompt is refused: ask something else"] * len(SETTINGS)
    assert errors_of(results, "s0") == errors_of(results, "s2") == [None] * len(SETTINGS)
    assert [record.setting for records in results for record in records if record.sample == "s1"] == list(
        SETTINGS
    )


@pytest.mark.parametrize("workers", KINDS)
@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("break", r"measuring s1 failed with ZeroDivisionError: nothing by nothing\nTraceback[^$]*in run"),
        (
            "mix up",
            r"measuring s1 failed with ValueError: the runner's 5 records are not those of 5 sett",
        ),
    ],
)
def test_a_fault_names_the_sample(tmp_path: Path, workers: int, prompt: str, said: str) -> None:
    with pytest.raises(WorkerError, match=said):
        run_all(workers, the_spec(tmp_path / "work"), works_of("answer", prompt))


@pytest.mark.parametrize("workers", KINDS)
def test_a_runner_that_cannot_be_made_is_the_end(tmp_path: Path, workers: int) -> None:
    with pytest.raises(BackendError, match=r"^backend 'onnxruntime' is not there: install it$"):
        run_all(workers, the_spec(tmp_path / "work"), works_of("answer", "answer"), no_backend)


def test_a_runner_with_a_fault_in_its_making_is_the_end(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"^a worker could not start: KeyError: 'threads'\nTraceback"):
        run_all(2, the_spec(tmp_path / "work"), works_of("answer", "answer"), broken)
    with pytest.raises(KeyError, match="threads"):
        run_all(1, the_spec(tmp_path / "work"), works_of("answer"), broken)


def test_a_killed_worker_is_replaced_and_its_sample_tried_again(tmp_path: Path) -> None:
    works = works_of("answer", "die once", "answer", "die once", "answer")
    spread = run_all(2, the_spec(tmp_path / "work", 1), works)
    alone = run_all(1, the_spec(tmp_path / "work", 1), works)  # nobody dies a second time
    assert len(spread) == 5
    assert untimed(spread) == untimed(alone)
    assert {record.error for records in spread for record in records} == {None}


def test_a_sample_that_kills_its_worker_twice_has_an_error(tmp_path: Path) -> None:
    work = tmp_path / "work"
    results = run_all(2, the_spec(work), works_of("answer", "die", "answer", "answer"))
    assert len(results) == 4
    reason = "the worker that measured it was ended by signal 9, Killed, 2 times: is memory short?"
    assert errors_of(results, "s1") == [reason] * len(SETTINGS)
    assert [errors_of(results, f"s{number}") for number in (0, 2, 3)] == [[None] * len(SETTINGS)] * 3
    assert len(list(work.glob("s1.*"))) == 2  # two workers, one try each


def test_every_sample_may_end_its_worker(tmp_path: Path) -> None:
    results = run_all(2, the_spec(tmp_path / "work"), works_of("die", "leave", "die"))
    killed, left = (
        f"the worker that measured it {how}, 2 times: is memory short?"
        for how in ("was ended by signal 9, Killed", "ended with status 3")
    )
    assert {record.sample: record.error for records in results for record in records} == {
        "s0": killed,
        "s1": left,
        "s2": killed,
    }


def test_workers_that_never_start_are_the_end(tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises(
        RunError,
        match="3 workers died before they had measured anything, and the last was ended by signal 9, Killed: "
        "each loads the whole model, so give fewer --workers if memory is short",
    ):
        run_all(2, the_spec(work), works_of("answer", "answer"), stillborn)
    assert 3 <= len(list(work.glob("start.*"))) <= 4  # the fourth may have come so far


def is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(processes: Sequence[int]) -> None:
    until = time.monotonic() + 30
    while any(map(is_running, processes)):
        assert time.monotonic() < until, f"still running: {processes}"
        time.sleep(0.02)


def workers_of(work: Path, count: int) -> list[int]:
    """The processes that left traces, once there are so many."""
    until = time.monotonic() + 30
    while len(found := {int(path.suffix[1:]) for path in work.glob("s*.*")}) < count:
        assert time.monotonic() < until, f"only {found} came"
        time.sleep(0.02)
    return sorted(found)


def test_closing_ends_the_workers_at_once(tmp_path: Path) -> None:
    work = tmp_path / "work"
    results = make_executor(2, None, OrderlyRunner).run(the_spec(work), works_of("answer", "gate", "gate"))
    assert next(results)[0].sample == "s0"
    processes = multiprocessing.active_children()
    assert len(processes) == 2
    results.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", KINDS)
def test_workers_are_kept_for_the_next_run_with_the_same_spec(tmp_path: Path, workers: int) -> None:
    spec = the_spec(tmp_path / "work", 1)
    with make_executor(workers, None, Counting) as executor:
        calls = [
            max(
                record.kv_bytes
                for records in executor.run(spec, works_of(*["answer"] * 4))
                for record in records
            )
        ]
        made = multiprocessing.active_children()
        calls += [
            record.kv_bytes for records in executor.run(spec, works_of("answer")) for record in records[:1]
        ]
        assert multiprocessing.active_children() == made
        other = replace(spec, seed=1)
        calls += [
            record.kv_bytes for records in executor.run(other, works_of("answer")) for record in records[:1]
        ]
        assert not set(multiprocessing.active_children()) & set(made)
    assert multiprocessing.active_children() == []
    assert 1 < calls[1] <= calls[0] + 1
    assert calls[2] == 1


def test_a_worker_that_dies_between_runs_is_replaced(tmp_path: Path) -> None:
    spec = the_spec(tmp_path / "work", 1)
    with make_executor(2, None, OrderlyRunner) as executor:
        first = list(executor.run(spec, works_of("answer", "answer", "answer")))
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        assert untimed(list(executor.run(spec, works_of("answer", "answer", "answer")))) == untimed(first)


def test_an_executor_goes_on_after_an_error(tmp_path: Path) -> None:
    spec = the_spec(tmp_path / "work", 1)
    with make_executor(2, None, OrderlyRunner) as executor:
        with pytest.raises(WorkerError, match="nothing by nothing"):
            list(executor.run(spec, works_of("break")))
        assert multiprocessing.active_children() == []
        assert len(list(executor.run(spec, works_of("answer")))) == 1


PROGRAM = """
import sys
from pathlib import Path
from calib.executors import make_executor
from tests.calib_runner_double import OrderlyRunner, the_spec
from tests.test_calib_executors import works_of

if __name__ == "__main__":
    try:
        works = works_of("gate", "gate")
        list(make_executor(2, None, OrderlyRunner).run(the_spec(Path(sys.argv[1])), works))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
"""


def started_program(tmp_path: Path) -> subprocess.Popen[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [*INTERRUPTIBLE, sys.executable, str(program), str(tmp_path / "work")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_ctrl_c_ends_everything_quietly(tmp_path: Path) -> None:
    with started_program(tmp_path) as program:
        processes = workers_of(tmp_path / "work", 2)
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does: to all of them
        out, err = program.communicate(timeout=30)
    assert (out, err, program.returncode) == ("interrupted\n", "", 130)
    wait_until_gone(processes)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with started_program(tmp_path) as program:
        processes = workers_of(tmp_path / "work", 2)
        program.kill()
        wait_until_gone(processes)
