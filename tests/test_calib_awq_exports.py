"""Decoders as the exporter writes them keep their logits when scales are folded into them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from calib.awq.folds import Heads, folds_of, shared_folds
from calib.awq.places import Readers
from calib.precision import FLOAT32, Precision
from calib.precision.bundle import GraphLogits
from calib.precision.convert import convert_model
from calib.precision.loss import LossCase
from calib.precision.weight_file import WeightFile
from fopru_graph.files import write_model
from runtime.bundle import load_bundle
from runtime.contract import EMBED_TOKENS
from runtime.manifest import DecoderInfo
from tests.awq_graphs import random_scales

# Of the largest logit: each weight is multiplied by up to 4 and divided again, a rounding of 2^-24 each, and
# sums are rounded at other places; a wrong fold is off by a factor.
ROUNDING = 1e-5


def logits_of(root: Path, graph: str, info: DecoderInfo) -> np.ndarray:
    ids = np.random.default_rng(3).integers(0, info.vocab_size, 24)
    return GraphLogits(root, FLOAT32, replace(info, caches={graph: info.caches[graph]}))(LossCase(ids))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_every_decoder_of_an_exported_bundle(
    family: str, family_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    """Fused and portable graphs, Qwen2 with its biases, grouped queries: they read the same new weights."""
    root = family_bundle(family)
    manifest = load_bundle(root).manifest
    info = manifest.decoder
    models = {name: ir.load(root / manifest.graphs[name].file) for name in (*info.caches, EMBED_TOKENS)}
    heads = Heads(info.kv_heads, info.head_dim)
    plans = {name: folds_of(model, heads)[0] for name, model in models.items()}
    first, *rest = models
    folds, _ = shared_folds(plans[first], [(Readers.of(models[name], name), plans[name]) for name in rest])
    names = [fold.name for fold in folds]
    for layer in range(info.layers):
        for part in ("attention.input", "attention.output", "mlp.input", "mlp.output"):
            assert f"layers.{layer}.{part}" in names
    scales = random_scales(folds)
    shutil.copytree(root, tmp_path / "b")
    with WeightFile(tmp_path / "b/onnx/scaled.onnx_data") as file:
        for name in info.caches:
            count = scales.apply(models[name])
            assert count == len(scales.factors)
            convert_model(models[name], Precision("fp32"), file)
            write_model(models[name], tmp_path / "b" / manifest.graphs[name].file)
    for name in info.caches:
        before, after = logits_of(root, name, info), logits_of(tmp_path / "b", name, info)
        assert np.abs(after - before).max() < ROUNDING * np.abs(before).max()
        assert not np.array_equal(after, before)
