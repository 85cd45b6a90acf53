"""Whether a build fits into memory, said from the headers of its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from calib.precision import Precisions, parse_precision
from export.build import BuildOptions, build
from export.errors import CheckpointError
from export.memory import available_bytes, check_memory, memory_need
from tests.conftest import Maker


def files(folder: Path, matrix: torch.dtype, other: torch.dtype) -> list[Path]:
    """Two files: 4,000 numbers in two matrices of the language model, and 1,030 not counted there."""
    tensors = {
        "model.language_model.layers.0.mlp.up_proj.weight": torch.zeros(30, 100, dtype=matrix),
        "model.language_model.norm.weight": torch.zeros(30),
        "model.language_model.embed_tokens.weight": torch.zeros(10, 100, dtype=matrix),
    }
    save_file(tensors, folder / "one")
    save_file({"lm_head.weight": torch.zeros(10, 100, dtype=other)}, folder / "two")
    return [folder / "one", folder / "two"]


def test_what_is_counted(tmp_path: Path) -> None:
    half = files(tmp_path, torch.float16, torch.float16)
    for precision, bits in (("fp32", 32), ("decoder=fp16", 16), ("decoder=int8", 8), ("decoder=int4", 4)):
        need = memory_need(half, parse_precision(precision))
        assert (need.loading, need.running) == (0, 4000 * bits // 8)


def test_matrices_of_several_dtypes_are_loaded_as_float32(tmp_path: Path) -> None:
    need = memory_need(files(tmp_path, torch.float16, torch.float32), Precisions())
    assert need.loading == 4 * (3000 + 1000)  # what is float32 already stays in its file


@pytest.mark.parametrize(
    ("available", "message"),
    [
        (
            15_999,
            r"takes 0\.0 GB of memory \(0\.00 billion weights of 32 bits\) when the bundle is compared with "
            r"PyTorch, and 0\.0 GB are available: give --precision decoder=int4 \(0\.0 GB\), or use another",
        ),
        (1_999, r"are available: use another machine$"),
    ],
)
def test_too_little_to_answer(
    available: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.memory.available_bytes", lambda: available)
    with pytest.raises(CheckpointError, match=message):
        check_memory(files(tmp_path, torch.bfloat16, torch.bfloat16), Precisions())


def test_too_little_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.memory.available_bytes", lambda: 15_000)
    mixed = files(tmp_path, torch.float16, torch.float32)
    with pytest.raises(
        CheckpointError, match=r"loading .* of several dtypes .*: save all of them as float16"
    ):
        check_memory(mixed, parse_precision("decoder=int4"))


@pytest.mark.parametrize("available", [16_000, None])
def test_just_enough_or_unknown(
    available: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.memory.available_bytes", lambda: available)
    check_memory(files(tmp_path, torch.float16, torch.float16), Precisions())


def test_the_system_is_asked(tmp_path: Path) -> None:
    found = available_bytes()
    assert (found is not None and found > 1 << 20) or not Path("/proc/meminfo").is_file()


@pytest.mark.parametrize(
    ("listing", "wanted"),
    [
        ("MemTotal: 9 kB\nMemAvailable: 4 kB\nSwapFree: 2 kB\n", 6 * 1024),
        ("MemAvailable: 4 kB\n", 4 * 1024),
        ("MemTotal: 9 kB\n", None),
    ],
)
def test_free_swap_counts(
    listing: str, wanted: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text(listing)
    monkeypatch.setattr("export.memory.Path", lambda _: tmp_path / "meminfo")
    assert available_bytes() == wanted


def test_position_ids_of_old_checkpoints_are_no_other_dtype(tmp_path: Path) -> None:
    half = files(tmp_path, torch.float16, torch.float16)
    save_file({"vision_tower.embeddings.position_ids": torch.arange(9)[None]}, tmp_path / "three")
    assert memory_need([*half, tmp_path / "three"], Precisions()).loading == 0


def test_a_build_is_refused_before_it_begins(
    toy_checkpoint: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.memory.available_bytes", lambda: 1000)
    with pytest.raises(CheckpointError, match="the language model takes"):
        build(BuildOptions(str(toy_checkpoint("clip-llama")), tmp_path / "bundle"))
    assert not list(tmp_path.iterdir())
