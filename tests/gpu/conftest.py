"""Fixtures of the tests that need an NVIDIA GPU; every one skips, with a sentence, where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.backend import BackendOptions, create_backend
from runtime.bundle import Bundle, load_bundle
from runtime.errors import FopruError

GPU_BACKENDS = ("tensorrt", "ort-tensorrt", "ort-cuda")
BUNDLE = "FOPRU_GPU_BUNDLE"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU and an engine for it")


@pytest.fixture(scope="session", params=GPU_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Name of a backend that is there."""
    name = str(request.param)
    try:
        create_backend(name, BackendOptions())
    except FopruError as error:
        pytest.skip(f"{name}: {error}")
    return name


@pytest.fixture(scope="session")
def toy(
    backend: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bundle]:
    """The exported toy bundle in float32, with the engines of this GPU where the backend needs them."""
    source = request.getfixturevalue("toy_bundle_dir")
    root = Path(shutil.copytree(source, tmp_path_factory.mktemp("gpu") / "bundle"))
    yield with_engines(root, backend)
    shutil.rmtree(root)


@pytest.fixture(scope="session", params=["toy", "own"])
def bundle(backend: str, request: pytest.FixtureRequest) -> Bundle:
    """The toy, then the bundle of `make test-gpu GPU_BUNDLE=...`."""
    if request.param == "toy":
        return request.getfixturevalue("toy")  # type: ignore[no-any-return]
    path = os.environ.get(BUNDLE)
    if not path:
        pytest.skip(f"no bundle of your own: make test-gpu GPU_BUNDLE=path (or set {BUNDLE})")
    return with_engines(Path(path), backend)


def with_engines(root: Path, backend: str) -> Bundle:
    """The bundle, with engines built where `tensorrt` lacks them."""
    if backend == "tensorrt":
        from runtime.engine import main

        assert main([str(root), "--unpruned"]) == 0
    return load_bundle(root)
