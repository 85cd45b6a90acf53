"""The scale of each group of products: the exponent whose rounded weights give the nearest outputs."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.awq.folds import Fold, Heads, folds_of, shared_folds
from calib.awq.judge import Trial
from calib.awq.places import Readers
from calib.awq.rows import Rows, collect_rows
from calib.awq.scales import AwqScales, FoldScale, factors_of
from calib.errors import StoreError
from calib.journal import Journal
from calib.precision import FLOAT32, Precision, Precisions, graph_file_of
from calib.precision.bundle import CaseFeeds
from calib.precision.loss import LossCase
from calib.precision.rounding import rounded_rows
from calib.precision.weight_file import row_chunks
from calib.precision.widened import Widened, fold_casts, numbers_of
from calib.ranges.collect import Keep
from runtime.manifest import DecoderInfo

__all__ = ["ALPHAS", "DecoderSource", "scale_decoder", "scale_for_alpha"]

ALPHAS = tuple(step / 20 for step in range(21))
"""Exponents that are tried; 0 is no scale at all, so that nothing becomes worse by what is measured."""

_CHANNELS = 1024  # outputs of a weight that are looked at, evenly spaced: an exponent is one number
_LEAST = 1e-4  # of the mean magnitude, for channels that are almost nothing

_Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DecoderSource:
    """A bundle whose decoder is float32: its directory, what its manifest says of the decoder, and the
    precisions of its graphs, of which the embedding is run. `tensorrt`: weights will be rounded as
    TensorRT's are. `threads`: of what is run; None: all cores."""

    root: Path
    decoder: DecoderInfo
    precisions: Precisions = FLOAT32
    tensorrt: bool = False
    threads: int | None = None


def _silent(_done: int, _total: int) -> None:
    """No progress."""


def scale_decoder(
    source: DecoderSource,
    precision: Precision,
    cases: Sequence[LossCase],
    keep: Keep,
    progress: Callable[[int, int], None] = _silent,
) -> AwqScales:
    """Find scales of channels for a decoder that is going to be rounded to 8 or 4 bits.

    Args:
        source: the float32 bundle.
        precision: int8 or int4, what the weights will be.
        cases: prompts with the bundle's own answers.
        keep: a file of JSON lines, one per group of products; its key has to cover everything above.
        progress: called with groups done and in all.

    Returns:
        Scales for every graph of the bundle, none where logits are not nearer to float32 with them; the same
        however often a run was cut.

    Raises:
        DataError: no case.
        RunError: an activation is not finite.
        StoreError: the file is damaged.
        BackendError: ONNX Runtime cannot open a graph.
    """
    graph = source.root / graph_file_of(next(iter(source.decoder.caches)), source.precisions.decoder)
    planned, notes = _plan(source, graph)
    folds = [fold for fold in planned if _rounded_products(fold, precision)]
    notes += tuple(
        f"{fold.name} is not scaled: its rows are not a multiple of {precision.block}"
        for fold in planned
        if fold not in folds
    )
    chosen: dict[str, FoldScale] = {}
    values: dict[str, _Matrix] = {}
    with Journal(keep.file, keep.key) as journal, _folder(keep.file) as folder:
        judged = None
        for line in journal.lines:
            if "judged" in line:
                judged = _judged_from(line)
            else:
                each, scale = _from_line(line)
                chosen[each.name], values[each.name] = each, scale
        todo = [fold for fold in folds if fold.name not in chosen]
        needed = bool(todo) or (bool(folds) and judged is None)
        feeds = None
        if needed:
            feeds = CaseFeeds(source.root, source.precisions, source.decoder, source.threads)
        widths = {fold.activation: fold.channels for fold in todo}
        rows = collect_rows(graph, feeds, widths, cases, folder) if feeds and todo else {}
        for number, fold in enumerate(todo, len(folds) - len(todo)):
            progress(number, len(folds))
            each, scale = _search(fold, rows[fold.activation], precision, tensorrt=source.tensorrt)
            chosen[fold.name], values[fold.name] = each, scale
            journal.append(_as_line(each, scale))
        rows.clear()
        used = [(fold, values[fold.name]) for fold in folds if chosen[fold.name].alpha > 0]
        scales = AwqScales(tuple(chosen[fold.name] for fold in folds), notes, factors_of(used))
        if used and judged is None:
            assert feeds is not None
            trial = Trial(graph, feeds, precision, cases, folder)
            judged = (trial.divergence(None), trial.divergence(scales))
            journal.append({"judged": judged})
        progress(len(folds), len(folds))
    return scales if judged is None else _worth_it(scales, judged)


def _worth_it(scales: AwqScales, judged: tuple[float, float]) -> AwqScales:
    """The scales, or none at all where logits are not nearer with them."""
    plain, scaled = judged
    if scaled < plain:
        return replace(scales, divergence=judged)
    note = (
        "the decoder is not scaled: its logits would not be nearer to float32 (mean KL divergence "
        f"{scaled:.3g} instead of {plain:.3g})"
    )
    folds = tuple(replace(fold, alpha=0.0, error=fold.plain) for fold in scales.folds)
    return AwqScales(folds, (*scales.notes, note), {}, judged)


def scale_for_alpha(means: npt.NDArray[np.float64], alpha: float) -> _Matrix:
    """float32 [K] that weights are multiplied by: magnitudes to the power of `alpha`, with 1 in the middle of
    their range; a channel that is never anything counts as a very small one."""
    largest = means.max(initial=0.0)
    if largest == 0 or alpha == 0:
        return np.ones(len(means), np.float32)
    powers = np.maximum(means / means.mean(), _LEAST) ** alpha
    scale: _Matrix = (powers / np.sqrt(powers.max() * powers.min())).astype(np.float32)
    return scale


@contextmanager
def _folder(file: Path) -> Iterator[Path]:
    """A folder for rows beside a file, without what a killed run left in it."""
    folder = file.with_name(f"{file.name}.rows")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _plan(source: DecoderSource, graph: Path) -> tuple[tuple[Fold, ...], tuple[str, ...]]:
    heads = Heads(source.decoder.kv_heads, source.decoder.head_dim)
    folds, notes = folds_of(_loaded(graph), heads)
    precision = source.precisions.decoder
    decoders = [source.root / graph_file_of(name, precision) for name in source.decoder.caches]
    others = []
    for path in sorted((source.root / "onnx").glob("*.onnx")):
        if path != graph:
            model = _loaded(path)
            theirs = folds_of(model, heads)[0] if path in decoders else ()
            others.append((Readers.of(model, path.stem), theirs))
    kept, more = shared_folds(folds, others)
    return kept, (*notes, *more)


def _loaded(path: Path) -> ir.Model:
    model = ir.load(path)
    fold_casts(model)
    return model


def _rounded_products(fold: Fold, precision: Precision) -> tuple[tuple[ir.Value, int], ...]:
    return fold.products if fold.channels % precision.block == 0 else ()


def _search(
    fold: Fold, rows: Rows, precision: Precision, *, tensorrt: bool
) -> tuple[FoldScale, npt.NDArray[np.float32]]:
    means = rows.means
    if fold.heads is not None:
        means = means.reshape(fold.heads.keys, -1, fold.heads.size).mean(axis=1).reshape(-1)
    candidates = [scale_for_alpha(means, alpha) for alpha in ALPHAS]
    kept, errors, whole = rows.kept, np.zeros(len(ALPHAS)), 0.0
    for weight in dict.fromkeys(fold.products):
        for part in _output_rows(*weight):
            whole += _square(kept @ part.T)
            for number, scale in enumerate(candidates):
                wide = fold.spread(scale)
                rounded = rounded_rows(part * wide, precision, tensorrt=tensorrt)
                rounded /= wide
                rounded -= part
                errors[number] += _square(kept @ rounded.T)
    best = int(errors.argmin())  # the first of equal ones: the least change
    relative = errors / whole if whole else errors
    return FoldScale(fold.name, ALPHAS[best], float(relative[best]), float(relative[0])), candidates[best]


def _output_rows(weight: ir.Value, axis: int) -> Iterator[_Matrix]:
    """float32 [n, K] of one weight at a time, some outputs of it."""
    tensor = weight.const_value
    assert tensor is not None
    array = numbers_of(tensor) if axis == 1 else numbers_of(tensor).T
    outputs, inputs = array.shape
    places = np.unique(np.linspace(0, outputs - 1, min(_CHANNELS, outputs)).round().astype(np.int64))
    for some in row_chunks(len(places), inputs * 4):
        yield np.ascontiguousarray(array[places[some]], np.float32)
    del array
    stored = tensor.source if isinstance(tensor, Widened) else tensor
    if isinstance(stored, ir.ExternalTensor):
        stored.release()


def _square(matrix: _Matrix) -> float:
    return float(np.einsum("rn,rn->", matrix, matrix, dtype=np.float64))


def _as_line(found: FoldScale, values: _Matrix) -> dict[str, object]:
    packed = base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()
    return {
        "name": found.name,
        "alpha": found.alpha,
        "error": found.error,
        "plain": found.plain,
        "scale": packed,
    }


def _from_line(line: Mapping[str, object]) -> tuple[FoldScale, _Matrix]:
    try:
        numbers = [float(str(line[key])) for key in ("alpha", "error", "plain")]
        values = np.frombuffer(base64.b64decode(str(line["scale"]), validate=True), "<f4")
        return FoldScale(str(line["name"]), *numbers), values.astype(np.float32)
    except (KeyError, ValueError) as error:
        raise StoreError(
            f"the scales that were kept are damaged ({error}): run with --fresh to find them again"
        ) from error


def _judged_from(line: Mapping[str, Any]) -> tuple[float, float]:
    try:
        plain, scaled = (float(value) for value in line["judged"])
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"the scales that were kept are damaged ({error}): run with --fresh to find them again"
        ) from error
    return plain, scaled
