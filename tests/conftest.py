"""Fixtures shared by the suites: toy checkpoints and bundles, made once per session."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.toy_llava import COMBINATIONS, write_toy_llava

Maker = Callable[[str], Path]


@dataclass(frozen=True)
class ToyBuild:
    """One run of `python -m export.build --json`."""

    bundle: Path
    report: dict[str, Any]
    stdout: str
    stderr: str


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
def toy_build(toy_checkpoint: Maker, tmp_path_factory: pytest.TempPathFactory) -> ToyBuild:
    """The toy CLIP + Llama checkpoint, built at ratio 0.3 by the command line."""
    from export.build import main

    target = tmp_path_factory.mktemp("bundles") / "toy"
    command = [
        "--model",
        str(toy_checkpoint("clip-llama")),
        "--output",
        str(target),
        "--ratio",
        "0.3",
        "--json",
    ]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(command)
    assert code == 0, (out.getvalue(), err.getvalue())
    return ToyBuild(target, json.loads(out.getvalue()), out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def toy_bundle_dir(toy_build: ToyBuild) -> Path:
    """A bundle built from the toy CLIP + Llama checkpoint; read-only, shared by all tests."""
    return toy_build.bundle


@pytest.fixture(scope="session")
def family_bundle(tmp_path_factory: pytest.TempPathFactory, torch_threads: None) -> Maker:
    """Bundle of a family's toy checkpoint by model type, at ratio 0.3; read-only, shared by all tests."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            from export.build import BuildOptions, build
            from tests.toy_families import TOYS

            folder = tmp_path_factory.mktemp("families")
            checkpoint = TOYS[name](folder / "checkpoint")
            made[name] = build(BuildOptions(str(checkpoint), folder / name, ratio=0.3)).bundle
        return made[name]

    return make
