"""Prune a vision encoder: in memory, or from file to file with shared weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import onnx_ir as ir

from fopru_graph.errors import GraphFileError, first_cause
from fopru_graph.files import check_shared_folder, write_model
from fopru_graph.options import PruneOptions
from fopru_graph.passes import (
    UNGATHERED,
    CleanPass,
    GatherPass,
    GraphPass,
    LocatePass,
    PreparePass,
    ScorePass,
    SelectPass,
)
from fopru_graph.report import PassCount, PruneReport
from fopru_graph.selectors import SELECTORS
from fopru_graph.shapes import Dim
from fopru_graph.weights import check_weight_files

__all__ = ["TENSORRT_TOPK", "load_graph", "prune", "prune_file"]

Findings = TypeVar("Findings")

TENSORRT_TOPK = 3839
"""Most elements that TensorRT's TopK selects (its parser: "must be less than 3840")."""


def prune(model: ir.Model, options: PruneOptions | None = None) -> PruneReport:
    """Insert FoPru into a vision encoder, in place; after an error the model is half done and of no use.

    The graph gains the input `num_keep` int64 [1], and the outputs `kept_indices` int64 [images, kept] and
    `token_scores` float32 [images, tokens]; its features become [images, p + kept, D], equal to the rows of
    the unpruned features.

    Args:
        model: an encoder with an output [images, p + N, D], before any fusion by a runtime.
        options: what to do; default: strategy `rank`, aggregation `col_mean`, deepest layer.

    Raises:
        UnsupportedGraphError: opset too old, or the graph is already pruned.
        LocateError: no output of that name or rank, no attention, no such layer.
        OptionError: options that do not fit this graph.
    """
    options = options or PruneOptions()
    counts: list[PassCount] = []

    def run(graph_pass: GraphPass[Findings]) -> Findings:
        done = graph_pass.run(model)
        counts.append(PassCount(graph_pass.name, done.count))
        return done.findings

    run(PreparePass())
    found = run(LocatePass(options))
    features = str(found.features.name)  # a late gather hands the name on to the pruned tensor
    needs_scores = SELECTORS[options.strategy].needs_scores
    scored = run(ScorePass(options, found)) if needs_scores else None
    selected = None if options.scores_only else run(SelectPass(options, found, scored))
    gathered = UNGATHERED if selected is None else run(GatherPass(found, selected))
    cleaned = run(CleanPass())
    added = (scored.added if scored else 0) + (selected.added if selected else 0) + gathered.added
    return PruneReport(
        layer=found.layer,
        locator=found.locator,
        locator_misses=found.misses,
        attention=found.core.node.name or "",
        form=found.core.form,
        score_path=scored.path if scored else "none",
        score_bytes=scored.bytes if scored else None,
        score_chunk=scored.chunk if scored else None,
        gather=gathered.place,
        gather_reason=gathered.reason,
        gathered=gathered.tensors,
        heads=found.heads,
        features=features,
        tokens=found.tokens,
        prefix_tokens=found.prefix,
        dropped_rows=found.dropped,
        special_tokens=found.special,
        dropped_outputs=found.dropped_outputs,
        strategy="none" if options.scores_only else options.strategy,
        aggregation=found.aggregation if scored else "",
        passes=tuple(counts),
        notes=tuple(
            note
            for note in (found.note, scored.note if scored else "", *_notes(options, found.tokens))
            if note
        ),
        nodes_added=added,
        nodes_removed=gathered.removed + cleaned.removed,
        merge=options.merge,
        merge_order=options.merge_order,
        token_order=options.token_order,
        mask=options.mask,
    )


def _notes(options: PruneOptions, tokens: Dim) -> tuple[str, ...]:
    topk = SELECTORS[options.strategy].topk
    if options.scores_only or topk == "none":
        return ()
    if topk == "rows" and isinstance(options.grid, tuple):
        candidates: Dim = options.grid[0]
    else:
        candidates = tokens
    if isinstance(candidates, int) and candidates <= TENSORRT_TOPK:
        return ()
    total = f"{candidates} per image" if isinstance(candidates, int) else "an image"
    return (f"TensorRT's TopK takes at most {TENSORRT_TOPK}: keep no more {topk} of {total} there",)


def load_graph(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX file; weights in external files stay on disk.

    Raises:
        GraphFileError: no such file, not a readable ONNX file, or a weight file that is missing or too short.
    """
    path = Path(path)
    if not path.is_file():
        raise GraphFileError(f"there is no file '{path}': give the path of an ONNX vision encoder")
    try:
        model = ir.load(path)
    except Exception as error:
        raise GraphFileError(
            f"'{path}' is not a readable ONNX file ({first_cause(error)}): export it again"
        ) from error
    if not len(model.graph):
        raise GraphFileError(f"'{path}' is not a readable ONNX file (it has no nodes): export it again")
    check_weight_files(model, path)
    return model


def prune_file(
    source: str | os.PathLike[str], target: str | os.PathLike[str], options: PruneOptions | None = None
) -> PruneReport:
    """Prune `source` into `target`, which appears complete or not at all.

    The target holds protobuf only: weights that the source keeps in external files are pointed to where they
    are, and weights inside the source's protobuf are copied.

    Args:
        source: an ONNX file.
        target: file to write, in the same folder as a source with external weights (pointers are relative to
            the folder).

    Raises:
        GraphFileError: a file is missing, damaged or cannot be written.
        GraphError: as `prune`.
    """
    source, target = Path(source), Path(target)
    model = load_graph(source)
    if target.resolve() == source.resolve():
        raise GraphFileError(
            f"target '{target}' is the source: name another file, the unpruned graph is still needed"
        )
    check_shared_folder(model, source, target)
    report = prune(model, options)
    write_model(model, target)
    return report
