"""Families with tiles, positions of several axes and pixel shuffle, quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from calib.quantize.__main__ import main
from runtime.check import main as check
from tests.measuring import noise


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "idefics3"])
def test_families(
    family: str, family_bundle: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    for number in range(3):
        noise(60 + number, 80, seed=number).save(data / f"{number}.png")
    words = ["--precision", "vision=int8", "--data", str(data), "--output", str(tmp_path / "o")]
    words += ["--work", str(tmp_path / "w"), "--keep-float", "none", "--min-cosine", "0.9", "--threads", "1"]
    code = main([str(family_bundle(family)), *words, "--max-new-tokens", "2"])
    assert code == 0, capsys.readouterr()
    assert check([str(tmp_path / "o")]) == 0
