"""The sweep: only what is missing is measured, and a run that was killed goes on to the same result."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
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
from tests.calib_runner_double import SETTINGS, OrderlyRunner, sample, samples, the_spec
from tests.interruptible import INTERRUPTIBLE

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

    def close(self) -> None:
        self._inner.close()


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


def test_a_failed_record_is_not_tried_again_in_the_same_run(tmp_path: Path, recorder: Recorder) -> None:
    data = samples("answer", "refuse")
    with ResultStore(tmp_path / "results.arrow", "key") as store:
        sweep = Sweep(data, the_spec(tmp_path / "work"), store, recorder)
        records = sweep.measure(SETTINGS)
        assert [record.error for record in records if record.sample == "s1"] == [
            "the prompt is refused: ask something else"
        ] * len(SETTINGS)
        assert sweep.measure(SETTINGS) == records
        assert recorder.works == []


def test_the_next_run_tries_again_what_failed(tmp_path: Path, recorder: Recorder) -> None:
    good, bad, gone = (
        replace(each, digest=each.name) for each in samples("answer", "refuse", "refuse").samples
    )
    path, spec = tmp_path / "results.arrow", the_spec(tmp_path / "work")
    with ResultStore(path, "key") as store:
        sweep = Sweep(Data("double", (good, bad, gone)), spec, store, recorder)
        first = sweep.measure(SETTINGS[:2])
        assert sweep.notes == []  # nothing of an earlier run
    cured = Data("double", (good, replace(bad, prompt="answer")))
    with ResultStore(path, "key") as store:
        sweep = Sweep(cured, spec, store, recorder)
        assert sweep.notes == [
            "measurements of these samples that failed in an earlier run: 2; those that are needed are made "
            "again, as the cause may be gone"
        ]
        second = sweep.measure(SETTINGS[:2])
        assert [(work.sample.name, len(work.settings)) for work in recorder.works] == [("s1", 2)]
        assert second[:2] == first[:2]
        assert [(record.sample, record.error) for record in second[2:]] == [("s1", None)] * 2
    with ResultStore(path, "key") as store:
        sweep = Sweep(cured, spec, store, recorder)
        assert (sweep.notes, sweep.measure(SETTINGS[:2]), recorder.works) == ([], second, [])


def test_a_sample_more_is_measured_alone_and_digests_decide(tmp_path: Path, recorder: Recorder) -> None:
    """As a row inserted before the others: what was s0 is s1 now, and another one is s0."""
    path, spec = tmp_path / "results.arrow", the_spec(tmp_path / "work")
    with ResultStore(path, "key") as store:
        first = Sweep(DATA, spec, store, recorder).measure(SETTINGS)
    new = replace(sample("new"), name="s0")
    moved = [replace(each, name=f"s{place}") for place, each in enumerate(DATA.samples, 1)]
    with ResultStore(path, "key") as store:
        records = Sweep(replace(DATA, samples=(new, *moved)), spec, store, recorder).measure(SETTINGS)
        assert [(work.sample, work.settings) for work in recorder.works] == [(new, tuple(ORDERED))]
    count = len(SETTINGS)
    assert [record.sample for record in records] == [f"s{place}" for place in range(7) for _ in SETTINGS]
    assert {record.digest for record in records[:count]} == {new.digest}
    assert [replace(record, sample="") for record in records[count:]] == [
        replace(record, sample="") for record in first
    ]
    with ResultStore(path, "key") as store:  # and the first data again: all of it is there
        before = path.read_bytes()
        assert Sweep(DATA, spec, store, recorder).measure(SETTINGS) == first
        assert recorder.works == []
    assert path.read_bytes() == before


def test_samples_that_are_not_in_the_data_stay_out(sweep: Sweep) -> None:
    stranger = Record("s0", REFERENCE, text="stranger", digest="another")
    sweep.store.append([stranger])
    told: list[tuple[int, int]] = []
    records = sweep.measure([REFERENCE], lambda done, total: told.append((done, total)))
    assert [record.sample for record in records] == [sample.name for sample in DATA.samples]
    assert stranger.text not in {record.text for record in records}
    assert sweep.store.records()[0] == stranger
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


GATED = samples(*["answer"] * 4, *["gate"] * 3, *["answer"] * 3)
"""With three workers or fewer, a run stops in the middle until its folder has a file `go`."""

PROGRAM = """
import sys
from pathlib import Path
from tests.test_calib_sweep import gated_sweep

if __name__ == "__main__":
    gated_sweep(Path(sys.argv[1]), int(sys.argv[2]))
"""


def gated_sweep(folder: Path, workers: int) -> tuple[list[Record], list[str]]:
    with (
        ResultStore(folder / "results.arrow", "key") as store,
        make_executor(workers, None, OrderlyRunner) as executor,
    ):
        sweep = Sweep(GATED, the_spec(folder / "work", 1), store, executor)
        return sweep.measure(SETTINGS), store.notes


def resumed(folder: Path, workers: int) -> tuple[list[Record], list[str]]:
    """What a run comes to that goes on in this folder, or begins there."""
    (folder / "work").mkdir(parents=True, exist_ok=True)
    (folder / "work" / "go").touch()
    return gated_sweep(folder, workers)


@contextmanager
def stopped_in_the_middle(folder: Path, workers: int) -> Generator[subprocess.Popen[bytes]]:
    """A process with a sweep that waits, in each of its workers, for a file that nobody makes."""
    (folder / "work").mkdir()
    program = folder / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen(
        [*INTERRUPTIBLE, sys.executable, str(program), str(folder), str(workers)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        until = time.monotonic() + 40
        while len({path.stem for path in (folder / "work").glob("s*.*")}) < 4 + workers:
            assert time.monotonic() < until, "it did not come to the middle"
            time.sleep(0.01)
        yield process


@pytest.mark.parametrize("workers", [1, 3])
def test_kill_9_in_the_middle_then_resume_is_an_uninterrupted_run(tmp_path: Path, workers: int) -> None:
    with stopped_in_the_middle(tmp_path, workers) as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    with ResultStore(tmp_path / "results.arrow", "key") as store:
        before = store.records()
    # Workers have begun the next samples; the last records may not have been written when it was killed.
    assert (4 - workers) * len(SETTINGS) < len(before) <= 4 * len(SETTINGS)
    records, _ = resumed(tmp_path, workers)
    whole, notes = resumed(tmp_path / "uninterrupted", 1)
    assert notes == []
    assert untimed(records) == untimed(whole)
    assert len(records) == len(GATED.samples) * len(SETTINGS)
    by_cell = {(record.sample, record.setting): record for record in records}
    assert [by_cell[record.sample, record.setting] for record in before] == before  # not measured again


def test_kill_9_in_the_middle_of_an_append(tmp_path: Path) -> None:
    with stopped_in_the_middle(tmp_path, 1) as process:
        process.kill()
    path = tmp_path / "results.arrow"
    os.truncate(path, path.stat().st_size - 100)  # as if the system had taken only so much
    records, notes = resumed(tmp_path, 1)
    assert untimed(records) == untimed(resumed(tmp_path / "uninterrupted", 1)[0])
    assert len(notes) == 1
    assert "were an append that was cut short, and were dropped; records kept: 15" in notes[0]


def test_ctrl_c_keeps_what_is_measured(tmp_path: Path) -> None:
    with stopped_in_the_middle(tmp_path, 2) as process:
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert err.decode().splitlines()[-1] == "KeyboardInterrupt"
    assert err.decode().count("Traceback") == 1, err.decode()  # the workers have none
    with ResultStore(tmp_path / "results.arrow", "key") as store:
        assert store.notes == []
        assert 2 * len(SETTINGS) < len(store.records()) <= 4 * len(SETTINGS)


def test_a_worker_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    killed = samples("answer", "die once", "answer", "answer", "die once", "answer")
    spec = the_spec(tmp_path / "work", 1)
    with (
        ResultStore(tmp_path / "results.arrow", "key") as store,
        make_executor(2, None, OrderlyRunner) as executor,
    ):
        records = Sweep(killed, spec, store, executor).measure(SETTINGS)
    with ResultStore(tmp_path / "alone.arrow", "key") as store:
        alone = Sweep(killed, spec, store, make_executor(1, None, OrderlyRunner)).measure(SETTINGS)
    assert untimed(records) == untimed(alone)
    assert len(records) == 6 * len(SETTINGS)
    assert {record.error for record in records} == {None}
