"""The sweep: only what is missing is measured, and a run that was killed goes on to the same result."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from calib.data.sample import Data
from calib.errors import StoreError
from calib.executors import Work, WorkerError, make_executor
from calib.measure.spec import RunnerSpec
from calib.record import Record
from calib.settings import REFERENCE, Setting
from calib.store import ResultStore
from calib.sweep import Sweep, setting_order
from tests.calib_runner_double import SETTINGS, OrderlyRunner, samples, the_spec

pytest.importorskip("pyarrow")

ROOT = Path(__file__).resolve().parent.parent
DATA = samples(*["answer"] * 6)
ORDERED = sorted(SETTINGS, key=setting_order)


class Recorder:
    """An executor that notes what it is given, and gives the results in another order."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self._inner = make_executor(1, None, OrderlyRunner)

    def run(self, spec: RunnerSpec, works: Sequence[Work]) -> Generator[list[Record]]:
        self.works = list(works)
        mixed = list(works)
        random.Random(0).shuffle(mixed)
        yield from self._inner.run(spec, mixed)


def untimed(records: Sequence[Record]) -> list[Record]:
    return [replace(record, vision=0.0, prefill=0.0, ttft=0.0) for record in records]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def sweep(tmp_path: Path, recorder: Recorder) -> Generator[Sweep]:
    with ResultStore(tmp_path / "results.arrow", "key") as store:
        yield Sweep(DATA, the_spec(tmp_path / "work", 1), store, recorder)


def test_settings_are_ordered_also_where_a_layer_is_the_bundles() -> None:
    assert [
        Setting("cls", 0.25, aggregation="cls"),
        REFERENCE,
        Setting("rank", 0.25),
        Setting("rank", 0.25, layer=3),
        Setting("rank", 0.5),
    ] == ORDERED
    assert setting_order(Setting("rank", 0.5, precision="int8")) > setting_order(Setting("rank", 0.5))


def test_result_is_by_sample_then_setting_whatever_arrives_first(sweep: Sweep) -> None:
    records = sweep.measure(SETTINGS)
    assert [(record.sample, record.setting) for record in records] == [
        (sample.name, setting) for sample in DATA.samples for setting in ORDERED
    ]
    arrived = [record.sample for record in sweep.store.records()]
    assert arrived != sorted(arrived)
    assert untimed(sweep.measure(reversed(SETTINGS))) == untimed(records)


def test_only_what_is_missing_is_measured(sweep: Sweep, recorder: Recorder) -> None:
    first = sweep.measure([REFERENCE, SETTINGS[1]])
    sweep.store.append([replace(first[0], setting=SETTINGS[2])])  # of s0 alone
    again = sweep.measure([*SETTINGS[:3], REFERENCE])
    assert [(work.sample.name, work.settings) for work in recorder.works] == [
        (f"s{number}", (SETTINGS[2],)) for number in range(1, 6)
    ]
    assert len(again) == 6 * 3
    assert {record.ttft for record in first} < {record.ttft for record in again}  # not measured twice
    assert sweep.measure(SETTINGS[:3]) == again
    assert recorder.works == []


def test_a_failed_record_is_not_tried_again(tmp_path: Path, recorder: Recorder) -> None:
    data = samples("answer", "refuse")
    with ResultStore(tmp_path / "results.arrow", "key") as store:
        sweep = Sweep(data, the_spec(tmp_path / "work"), store, recorder)
        records = sweep.measure(SETTINGS)
        assert [record.error for record in records if record.sample == "s1"] == [
            "the prompt is refused: ask something else"
        ] * len(SETTINGS)
        assert sweep.measure(SETTINGS) == records
        assert recorder.works == []


def test_samples_that_are_not_in_the_data_stay_out(sweep: Sweep) -> None:
    sweep.store.append([Record("stranger", REFERENCE)])
    told: list[tuple[int, int]] = []
    records = sweep.measure([REFERENCE], lambda done, total: told.append((done, total)))
    assert [record.sample for record in records] == [sample.name for sample in DATA.samples]
    assert told == [(done, 6) for done in range(7)]


def test_progress_counts_what_is_there_already(sweep: Sweep) -> None:
    sweep.measure(SETTINGS[:2])
    told: list[tuple[int, int]] = []
    sweep.measure(SETTINGS[:3], lambda done, total: told.append((done, total)))
    assert told == [(done, 18) for done in range(12, 19)]


def test_no_settings_no_records(sweep: Sweep, recorder: Recorder) -> None:
    assert sweep.measure([]) == []
    assert recorder.works == []


def test_a_fault_keeps_what_came_before(tmp_path: Path) -> None:
    data = samples("answer", "answer", "break", "answer")
    executor = make_executor(1, None, OrderlyRunner)
    with ResultStore(tmp_path / "results.arrow", "key") as store:
        with pytest.raises(WorkerError, match="measuring s2 failed with ZeroDivisionError"):
            Sweep(data, the_spec(tmp_path / "work"), store, executor).measure(SETTINGS)
        assert [record.sample for record in store.records()] == ["s0"] * 5 + ["s1"] * 5


def test_a_store_that_fails_ends_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    def full(self: ResultStore, records: Sequence[Record]) -> list[Record]:
        raise StoreError("the disk is full")

    monkeypatch.setattr(ResultStore, "append", full)
    with ResultStore(tmp_path / "results.arrow", "key") as store:
        sweep = Sweep(DATA, the_spec(tmp_path / "work"), store, make_executor(2, None, OrderlyRunner))
        with pytest.raises(StoreError, match="the disk is full"):
            sweep.measure(SETTINGS)
    assert multiprocessing.active_children() == []


PROGRAM = """
import sys
from pathlib import Path
from tests.test_calib_sweep import slow_sweep

if __name__ == "__main__":
    slow_sweep(Path(sys.argv[1]), int(sys.argv[2]))
"""


def slow_data() -> Data:
    return samples(*["wait"] * 12)


def slow_sweep(folder: Path, workers: int) -> tuple[list[Record], list[str]]:
    with ResultStore(folder / "results.arrow", "key") as store:
        executor = make_executor(workers, None, OrderlyRunner)
        spec = the_spec(folder / "work", 1)
        return Sweep(slow_data(), spec, store, executor).measure(SETTINGS), store.notes


def started(folder: Path, workers: int) -> subprocess.Popen[bytes]:
    (folder / "work").mkdir(parents=True, exist_ok=True)
    program = folder / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(program), str(folder), str(workers)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for(folder: Path, begun: int) -> None:
    """Until so many samples have been begun; some in front of them are in the store then."""
    until = time.monotonic() + 40
    while len({path.stem for path in (folder / "work").glob("s*.*")}) < begun:
        assert time.monotonic() < until, f"sample {begun} was not begun"
        time.sleep(0.005)


def uninterrupted(folder: Path) -> list[Record]:
    """What every run must come to; the waiting is left out."""
    records = []
    for sample in slow_data().samples:
        runner = OrderlyRunner(the_spec(folder, 1))
        quick = replace(sample, prompt="answer")  # the digest, and so the answer, stays
        records += runner.run(quick, ORDERED)
    return untimed(records)


@pytest.mark.parametrize("workers", [1, 3])
def test_kill_9_in_the_middle_then_resume_is_an_uninterrupted_run(tmp_path: Path, workers: int) -> None:
    for begun in (3, 7):  # killed twice
        with started(tmp_path, workers) as program:
            wait_for(tmp_path, begun)
            program.kill()
            program.communicate()
            assert program.returncode == -signal.SIGKILL
    with ResultStore(tmp_path / "results.arrow", "key") as store:
        before = store.records()
    assert 0 < len(before) < 12 * len(SETTINGS)
    records, _ = slow_sweep(tmp_path, workers)
    assert untimed(records) == uninterrupted(tmp_path / "other")
    by_cell = {(record.sample, record.setting): record for record in records}
    assert [by_cell[record.sample, record.setting] for record in before] == before  # timing too: not again


def test_kill_9_in_the_middle_of_an_append(tmp_path: Path) -> None:
    with started(tmp_path, 1) as program:
        wait_for(tmp_path, 4)
        program.kill()
        program.communicate()
    path = tmp_path / "results.arrow"
    os.truncate(path, path.stat().st_size - 100)  # as if the system had taken that much of it
    records, notes = slow_sweep(tmp_path, 1)
    assert untimed(records) == uninterrupted(tmp_path / "other")
    assert len(notes) == 1
    assert "were an append that was cut short" in notes[0]


def test_ctrl_c_keeps_what_is_measured(tmp_path: Path) -> None:
    with started(tmp_path, 2) as program:
        wait_for(tmp_path, 5)
        os.killpg(program.pid, signal.SIGINT)
        _, err = program.communicate(timeout=30)
    assert err.decode().splitlines()[-1] == "KeyboardInterrupt"
    assert err.decode().count("Traceback") == 1  # the workers have none
    with ResultStore(tmp_path / "results.arrow", "key") as store:
        assert store.notes == []
        assert 0 < len(store.records()) < 12 * len(SETTINGS)


def test_a_worker_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    killed = samples("wait", "die once", "wait", "wait", "die once", "wait")
    with ResultStore(tmp_path / "results.arrow", "key") as store:
        spec = the_spec(tmp_path / "work", 1)
        records = Sweep(killed, spec, store, make_executor(2, None, OrderlyRunner)).measure(SETTINGS)
    with ResultStore(tmp_path / "alone.arrow", "key") as store:
        alone = Sweep(killed, spec, store, make_executor(1, None, OrderlyRunner)).measure(SETTINGS)
    assert untimed(records) == untimed(alone)
    assert len(records) == 6 * len(SETTINGS)
    assert {record.error for record in records} == {None}
