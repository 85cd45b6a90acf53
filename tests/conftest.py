"""Fixtures shared by the suites: toy checkpoints and bundles are made once per session, torch on few threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toy_llava import COMBINATIONS, write_toy_llava

Maker = Callable[[str], Path]


@pytest.fixture(scope="session")
def torch_threads() -> None:
    """Toy models are too small to gain from threads, and the suites run beside other work."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory, torch_threads: None) -> Maker:
    """Directory of a toy checkpoint by the name of its combination; read-only, shared by all tests."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / name
            made[name] = write_toy_llava(folder, COMBINATIONS[name])
        return made[name]

    return make


@pytest.fixture(scope="session")
def toy_bundle_dir(toy_checkpoint: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle built from the toy CLIP + Llama checkpoint at ratio 0.3; read-only, shared by all tests."""
    from export.build import BuildOptions, build

    target = tmp_path_factory.mktemp("bundles") / "toy"
    report = build(BuildOptions(model=str(toy_checkpoint("clip-llama")), output=target, ratio=0.3))
    assert report.ok, report.parity
    return target
