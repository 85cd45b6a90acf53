"""Data, sweep and store with the real runner: the same records in one process, in two, and in parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calib.data import Data, open_data
from calib.executors import make_executor
from calib.measure.spec import RunnerSpec
from calib.record import Record
from calib.settings import REFERENCE, Setting
from calib.store import ResultStore
from calib.sweep import Sweep

pytest.importorskip("pyarrow")

SETTINGS = [REFERENCE, *(Setting(selector, 0.3) for selector in ("rank", "row", "random", "resize"))]


@pytest.fixture
def data(tmp_path: Path) -> Data:
    drawn = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(4):
        pixels = drawn.integers(0, 255, (40 + number, 50, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "prompts.txt").write_text("a b\nb c\n")
    return open_data(tmp_path / "photos", tmp_path / "prompts.txt", "", 6, 0)


def swept(folder: Path, data: Data, bundle: Path, workers: int) -> list[Record]:
    """All settings in two rounds, without what no two runs share."""
    folder.mkdir(exist_ok=True)
    spec = RunnerSpec((("", bundle),), "onnxruntime", 1, 4, 0, folder)
    with (
        ResultStore(folder / "results.arrow", "key") as store,
        make_executor(workers, None) as executor,
    ):
        sweep = Sweep(data, spec, store, executor)
        sweep.measure(SETTINGS[:2])
        return [replace(row, vision=0.0, prefill=0.0, ttft=0.0) for row in sweep.measure(SETTINGS)]


def test_one_process_two_and_a_resumed_run_agree(tmp_path: Path, data: Data, toy_bundle_dir: Path) -> None:
    alone = swept(tmp_path / "alone", data, toy_bundle_dir, 1)
    assert len(alone) == 6 * len(SETTINGS)
    assert {record.error for record in alone} == {None}
    assert len({record.kept for record in alone}) > len(data.samples)
    assert swept(tmp_path / "two", data, toy_bundle_dir, 2) == alone
    part = replace(data, samples=data.samples[::2])
    assert len(swept(tmp_path / "parts", part, toy_bundle_dir, 1)) == 3 * len(SETTINGS)
    assert swept(tmp_path / "parts", data, toy_bundle_dir, 1) == alone
