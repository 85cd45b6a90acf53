"""Helpers for tests that measure: samples, specs, and bundles with another pruned graph."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calib.data.sample import Sample
from calib.measure.spec import RunnerSpec
from fopru_graph import PruneOptions, prune_file
from runtime import contract

__all__ = ["PROMPT", "edited", "noise", "photo", "repruned", "sample_of", "spec_of"]

PROMPT = "What is it?"


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def photo(height: int = 90, width: int = 70, seed: int = 0) -> bytes:
    """The bytes of a PNG."""
    stream = io.BytesIO()
    noise(height, width, seed).save(stream, "PNG")
    return stream.getvalue()


def sample_of(*images: Path | bytes, prompt: str = PROMPT, answer: str | None = None) -> Sample:
    name = f"{len(images)} images"
    digest = hashlib.sha256(repr((images, prompt, answer)).encode()).hexdigest()
    return Sample(name, images, prompt, answer, digest, digest)


def spec_of(work: Path, *bundles: Path, tokens: int = 4, seed: int = 0) -> RunnerSpec:
    """Bundles by the labels "", "1", "2", ..."""
    named = tuple((str(number or ""), bundle) for number, bundle in enumerate(bundles))
    return RunnerSpec(named, "onnxruntime", 1, tokens, seed, work)


def edited(bundle: Path, target: Path, **changes: dict[str, Any]) -> Path:
    """A copy with other values under some keys of bundle.json; sizes and sums are those of its files."""
    if not target.exists():
        shutil.copytree(bundle, target)
    record = json.loads((target / "bundle.json").read_text())
    for key, values in changes.items():
        record[key].update(values)
    for name, info in record["files"].items():
        data = (target / name).read_bytes()
        info.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (target / "bundle.json").write_text(json.dumps(record))
    return target


def repruned(bundle: Path, target: Path, options: PruneOptions) -> Path:
    """A copy whose pruned graph is made with these options, as the exporter would."""
    shutil.copytree(bundle, target)
    pruned = target / contract.graph_file(contract.VISION_ENCODER_FOPRU)
    pruned.unlink()
    prune_file(target / contract.graph_file(contract.VISION_ENCODER), pruned, options)
    return edited(
        target,
        target,
        pruning={
            "strategy": options.strategy,
            "aggregation": options.aggregation,
            "layer": options.layer,
        },
    )
