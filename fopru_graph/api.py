"""Prune a vision encoder: in memory, or from file to file with shared weights."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import onnx_ir as ir

from fopru_graph.errors import GraphFileError
from fopru_graph.options import PruneOptions
from fopru_graph.passes import CleanPass, GatherPass, LocatePass, ScorePass, SelectPass
from fopru_graph.report import PassCount, PruneReport
from fopru_graph.weights import check_weight_files, external_tensors

__all__ = ["TENSORRT_TOPK", "load_graph", "prune", "prune_file"]

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
    located = LocatePass(options).run(model)
    score = ScorePass(options, located.findings).run(model)
    select = SelectPass(options, located.findings, score.findings).run(model)
    gather = GatherPass(options, located.findings, select.findings).run(model)
    clean = CleanPass().run(model)
    found = located.findings
    counts = {
        LocatePass.name: located.count,
        ScorePass.name: score.count,
        SelectPass.name: select.count,
        GatherPass.name: gather.count,
        CleanPass.name: clean.count,
    }
    return PruneReport(
        layer=found.layer,
        locator=found.locator,
        locator_misses=found.misses,
        attention=found.core.node.name or "",
        form=found.core.form,
        score_path=score.findings.path,
        gather=gather.findings.place,
        gather_reason=gather.findings.reason,
        gathered=gather.findings.tensors,
        heads=found.heads,
        tokens=found.tokens,
        prefix_tokens=options.prefix_tokens,
        dropped_rows=found.dropped,
        special_tokens=found.special,
        strategy=options.strategy,
        aggregation=options.aggregation,
        passes=tuple(PassCount(name, count) for name, count in counts.items()),
        notes=tuple(note for note in (score.findings.note, *_notes(options, found.tokens)) if note),
        nodes_added=sum(part.added for part in (score.findings, select.findings, gather.findings)),
        nodes_removed=gather.findings.removed + clean.findings.removed,
    )


def _notes(options: PruneOptions, tokens: int) -> tuple[str, ...]:
    if options.strategy == "row" and options.grid is not None:
        candidates, unit = options.grid[0], "rows"
    else:
        candidates, unit = tokens, "tokens"
    if candidates <= TENSORRT_TOPK:
        return ()
    return (
        f"TensorRT's TopK takes at most {TENSORRT_TOPK}: keep no more {unit} of {candidates} per image there",
    )


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
        raise GraphFileError(f"'{path}' is not a readable ONNX file ({error}): export it again") from error
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
    shared = sorted({str(tensor.location) for tensor in external_tensors(model)})
    if shared and target.resolve().parent != source.resolve().parent:
        raise GraphFileError(
            f"target '{target}' is not in the folder of '{source}', but it shares the weight file "
            f"'{shared[0]}': write it there"
        )
    report = prune(model, options)
    _write(model, target)
    return report


def _write(model: ir.Model, target: Path) -> None:
    """Write beside the target and rename."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".onnx", dir=target.parent)
    except OSError as error:
        raise GraphFileError(f"cannot write '{target}': {_reason(error)}") from error
    os.close(handle)
    partial = Path(name)
    try:
        ir.save(model, partial)
        partial.chmod(0o644)
        partial.replace(target)
    except OSError as error:
        raise GraphFileError(f"cannot write '{target}': {_reason(error)}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _reason(error: OSError) -> str:
    """What the system said; numpy says "N requested and M written" without an error number on a full disk."""
    if error.strerror:
        return error.strerror
    text = str(error) or type(error).__name__
    return f"no space left on device ({text})" if "requested and" in text else text
