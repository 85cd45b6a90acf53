"""The measurement of quantised bundles, from end to end on a tiny model: every figure is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import quantize
from bench.configurations import CONFIGURATIONS, configuration
from bench.results import read_result


def test_every_figure_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = configuration("tiny", decoder_layers=1)  # tracing time grows with the layers
    monkeypatch.setitem(CONFIGURATIONS, "tiny", replace(tiny, vision=tiny.vision | {"num_hidden_layers": 2}))
    words = ["--model", "tiny", "--samples", "4", "--rounds", "2", "--warmup", "0", "--threads", "1"]
    places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    assert quantize.main([*words, *places, "--no-build"]) == 0
    found = read_result(tmp_path / "results" / "quantize-tiny.json").figures
    assert set(found["times"]) == {"ratio 1", "ratio 0.3"}
    for stages in found["times"].values():
        assert set(stages) == {"vision", "prefill", "decode", "ttft"}
        for each in stages.values():
            low, high = each["quartiles"]
            assert 0 < low <= each["quantised_to_float32"] <= high
    # Every product of the two layers that are run and of the projector, in integers.
    for counts in found["operators"].values():
        assert counts["MatMulIntegerToFloat"] >= 6 + 2
    assert found["fidelity"]["samples"] == {"collect": 3, "judge": 1}
    assert found["engines"] == {}
    assert "TensorRT" not in (tmp_path / "results" / "quantize-tiny.md").read_text()
    left = {path.name for path in (tmp_path / "work").rglob("*.optimised*")}
    assert left == set()


def test_too_few_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize.main(["--samples", "3", "--work", str(tmp_path), "--results", str(tmp_path)]) == 2
    assert "samples is 3: give at least 4, of which one is held out" in capsys.readouterr().err
