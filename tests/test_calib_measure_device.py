"""Measuring with a backend that has memory of its own, on a stand-in for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import runtime.backend
from calib.measure.runner import SampleRunner
from calib.record import Record
from calib.settings import REFERENCE, Setting
from tests.measuring import photo, sample_of, spec_of
from tests.ort_double import install

SETTINGS = [
    REFERENCE,
    Setting("rank", 0.3),
    Setting("row", 0.5),
    Setting("cls", 0.3),
    Setting("random", 0.3),
    Setting("uniform", 0.7),
    Setting("resize", 0.8),
    Setting("rank", 0.3, layer=0),
]


def comparable(record: Record) -> Record:
    return replace(record, vision=0.0, prefill=0.0, ttft=0.0, divergence=0.0)


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl"])
def test_a_device_measures_what_the_cpu_does(
    family: str, family_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"ort-cuda": "runtime.backends.ort_cuda"}
    monkeypatch.setattr(runtime.backend, "_MODULES", runtime.backend._MODULES | names)
    ort = install(monkeypatch)
    spec = spec_of(tmp_path, family_bundle(family))
    sample = sample_of(photo(112, 112), photo(60, 90, seed=2))
    expected = SampleRunner(spec).run(sample, SETTINGS)
    found = SampleRunner(replace(spec, backend="ort-cuda")).run(sample, SETTINGS)
    assert [record.error for record in found] == [None] * len(SETTINGS)
    assert [comparable(record) for record in found] == [comparable(record) for record in expected]
    for ours, theirs in zip(found, expected, strict=True):
        # The caches grow in another way, so that sums of float32 have another order.
        assert ours.divergence == pytest.approx(theirs.divergence, abs=1e-5)
    assert ort.heap.copied["dd"] > 0  # visual tokens went from graph to prompt on the device
