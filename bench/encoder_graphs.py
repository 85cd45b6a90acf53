"""Encoder graphs of a family without a bundle: as exported, and pruned with plain and chunked scores."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.family_models import Cut, FamilyModel, ensure_family_checkpoint
from bench.workspace import source_digest
from export.checkpoint import load_config, load_model, load_processor, open_checkpoint
from export.families import FAMILIES
from export.families.base import EncoderInfo
from export.onnx_from_torch import write_onnx_from_torch
from fopru_graph import PruneOptions, PruneReport, prune_file
from runtime import contract
from runtime.layouts import ImageLayout
from runtime.manifest import Preprocess

__all__ = ["Graphs", "Shape", "ensure_graphs", "shape_of"]

OPSET = 20


@dataclass(frozen=True)
class Shape:
    """What one picture of `side` x `side` pixels means for an encoder.

    `rows` are those of an attention over a whole unit, `tokens` those of a unit that can be pruned,
    `weights` the bytes of tower and projector in float32.
    """

    side: int
    units: int
    rows: int
    tokens: int
    heads: int
    weights: int


@dataclass(frozen=True)
class Graphs:
    """Files and reports by variant (the unpruned one has no report), and how pictures become inputs."""

    paths: dict[str, Path]
    reports: dict[str, PruneReport]
    layout: ImageLayout
    preprocess: Preprocess


def shape_of(model: FamilyModel, cut: Cut, side: int) -> Shape:
    """Read from the configuration; nothing is loaded or written.

    Raises:
        BenchError: tiles of this picture have padding, so that not all units keep the same number of tokens.
    """
    import torch
    import transformers

    config, processor = model.build(cut)
    family = FAMILIES[config.model_type]
    info = family.encoder_info(config)
    plan = family.layout(config, processor).plan(side, side)
    unit = plan.units[0]
    if any(other.prunable != unit.prunable for other in plan.units):
        raise BenchError(
            f"a picture of {side} x {side} pixels has tiles with padding, which are not one call: give a "
            "--size that fills its tiles, e.g. 672 for llava_next"
        )
    with torch.device("meta"):
        hollow = getattr(transformers, config.architectures[0])(config)
    outside = ("language_model", "text_model", "lm_head")
    weights = sum(
        math.prod(parameter.shape)
        for name, parameter in hollow.named_parameters()
        if not any(part in name for part in outside)
    )
    return Shape(
        side=side,
        units=len(plan.units),
        rows=unit.tokens * info.merge**2 + info.special_tokens,
        tokens=unit.tokens,
        heads=config.vision_config.num_attention_heads,
        weights=4 * weights,
    )


def ensure_graphs(model: FamilyModel, cut: Cut, folder: Path, score_memory: int) -> Graphs:
    """Export the encoder into `folder` where it is not there yet, and prune it.

    Args:
        model: the family.
        cut: what is left of the published model.
        folder: of this family and cut alone.
        score_memory: bytes per unit that the chunked form may hold.
    """
    checkpoint = open_checkpoint(str(ensure_family_checkpoint(model, cut, folder / "checkpoint")))
    config, processor = load_config(checkpoint), load_processor(checkpoint)
    family = checkpoint.family
    layout, info = family.layout(config, processor), family.encoder_info(config)
    source, stamp = folder / "encoder.onnx", folder / "recipe"
    record = json.dumps([asdict(cut), OPSET, source_digest(checkpoint.path)])
    if not stamp.is_file() or stamp.read_text() != record:
        _export(checkpoint, layout, source)
        stamp.write_text(record)
    paths, reports = {"unpruned": source}, {}
    for name, limit in (("plain", None), ("chunked", score_memory)):
        paths[name] = folder / f"pruned-{name}.onnx"
        reports[name] = prune_file(source, paths[name], _options(layout, info, limit))
    return Graphs(paths, reports, layout, family.preprocess(processor))


def _export(checkpoint: Any, layout: ImageLayout, target: Path) -> None:
    model = load_model(checkpoint)
    decoder = checkpoint.family.decoder_info(model)
    graphs = checkpoint.family.subgraphs(model, layout, decoder)
    encoder = next(graph for graph in graphs if graph.name == contract.VISION_ENCODER)
    write_onnx_from_torch(encoder, target, OPSET)
    del model, encoder
    gc.collect()  # traced programs are full of cycles and hold the weights


def _options(layout: ImageLayout, info: EncoderInfo, score_memory: int | None) -> PruneOptions:
    """As `python -m export.build` prunes by default, but for the memory."""
    return PruneOptions(
        layer=info.layer,
        prefix_tokens=layout.prefix_tokens,
        special_tokens=info.special_tokens,
        grid=layout.unit_grid,
        merge=info.merge,
        merge_order=info.merge_order,
        token_order=info.token_order,
        mask=layout.masked,
        score_memory=score_memory,
    )
