"""Stage-by-stage comparison of this runtime with a reference, each stage with its tolerance and the reason
for it.

The reference is a mapping of the arrays named in `STAGES`, made by something else (PyTorch at build time,
kept as golden tensors); `measure` makes the same mapping with a bundle. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime import contract
from runtime.backend import Array
from runtime.decoder import DecoderRun
from runtime.generator import Generator
from runtime.layouts import ImagePlan
from runtime.manifest import Manifest
from runtime.plan import Amount, plan_pruning
from runtime.preprocess import ImageSource
from runtime.request import Request
from runtime.vision import Selection

__all__ = [
    "STAGES",
    "TIE_WINDOW",
    "ParityReport",
    "Stage",
    "StageResult",
    "UnitScores",
    "compare",
    "compare_stage",
    "format_report",
    "length_gain",
    "measure",
    "row_cosine",
]

EXACT, ABSOLUTE, OF_MAX, OF_MEAN = "exact", "absolute", "of max", "of mean"

TIE_WINDOW = 1e-5
"""Scores closer than this fraction of the score at the K boundary tie: float32 cannot order them.

Measured between PyTorch eager and ONNX Runtime on a 5-layer tower: a score near the boundary is off by up to
5e-6 of it, so that two may trade places when they are twice that apart.
"""


@dataclass(frozen=True)
class Stage:
    """One compared array; `tolerance` is times the reference's max or mean where `scale` says so."""

    name: str
    tolerance: float
    scale: str
    reason: str


STAGES = (
    Stage("pixel_values", 1e-6, ABSOLUTE, "same integer resize; only the normalisation may round"),
    Stage("kept_counts", 0.0, EXACT, "integers, known before any graph runs"),
    Stage("image_features", 1e-4, OF_MAX, "float32 sums in another order, layer after layer"),
    Stage("token_scores", 1e-3, OF_MEAN, "float32 softmax; the mean score 1/Q is the scale"),
    Stage("kept_indices", 0.0, EXACT, "integers; a near-tie is named, never passed over"),
    Stage("pruned_features", 1e-4, OF_MAX, "as image_features"),
    Stage("input_ids", 0.0, EXACT, "integers"),
    Stage("position_ids", 0.0, EXACT, "integers"),
    Stage("inputs_embeds", 1e-4, OF_MAX, "text rows are copied, visual rows as image_features"),
    Stage("logits", 1e-4, OF_MAX, "float32 sums in another order, through the decoder"),
    Stage("tokens", 0.0, EXACT, "greedy: equal unless two logits tie"),
)

_OF = " of "
_CENTRED = ("token_scores", "logits")  # a number added to all changes nothing, and would hide differences
_AFTER_INDICES = ("pruned_features", "position_ids", "inputs_embeds", "logits", "tokens")


@dataclass(frozen=True)
class StageResult:
    """The comparison of one stage; `tolerance` is absolute here, `max_abs_diff` None where nothing could be
    compared.

    `skipped` marks a stage after a near-tie in `kept_indices`: other tokens went on, so there is nothing to
    compare. `cosine` is the mean over rows of the last axis, of features, scores and logits that could be
    compared, and `gain` how many times as large they are: a wrong scale turns no row. For
    both, a row of scores or logits is less its mean.
    `chosen`, of kept indices: how good the choice is by the reference's scores, from 0 (the least ones are
    kept) to 1 (the same or as good).
    """

    name: str
    max_abs_diff: float | None
    tolerance: float
    reason: str
    ok: bool
    detail: str = ""
    skipped: bool = False
    cosine: float | None = None
    gain: float | None = None
    chosen: float | None = None


@dataclass(frozen=True)
class ParityReport:
    """All stages in order."""

    stages: tuple[StageResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no stage diverges."""
        return self.first_divergence is None

    @property
    def first_divergence(self) -> str | None:
        """Name of the first stage that diverges."""
        return next((stage.name for stage in self.stages if not stage.ok), None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON and for the `parity` field of a manifest."""
        return {
            "ok": self.ok,
            "first_divergence": self.first_divergence,
            "stages": [_plain(stage) for stage in self.stages],
        }


@dataclass(frozen=True)
class UnitScores:
    """How `token_scores` and `kept_indices` are to be read: N of every unit, in order, and the row length
    where whole rows are kept, whose near-ties are between means of rows."""

    tokens: tuple[int, ...]
    columns: tuple[int, ...] | None = None


def compare(
    reference: Mapping[str, Array], measured: Mapping[str, Array], units: UnitScores | None = None
) -> ParityReport:
    """Compare every stage.

    Args:
        reference: arrays by stage name, see `STAGES`.
        measured: the same from `measure`.
        units: to tell near-ties from differences; None: every difference of indices diverges.
    """
    results: list[StageResult] = []
    tied = False
    # What further decoder graphs gave is compared with the same reference.
    reference = {
        **reference,
        **{name: reference[base] for name, base in _further(measured) if base in reference},
    }
    for stage in (*STAGES, *(_named(base, name) for name, base in _further(measured))):
        missing = [
            side for side, has in (("reference", reference), ("measured", measured)) if stage.name not in has
        ]
        if missing:
            detail = f"missing from the {' and the '.join(missing)} arrays"
            results.append(StageResult(stage.name, None, stage.tolerance, stage.reason, False, detail))
        elif tied and _depends(stage, reference, measured):
            detail = "not compared: other tokens were kept, see kept_indices"
            results.append(
                StageResult(stage.name, None, stage.tolerance, stage.reason, True, detail, skipped=True)
            )
        else:
            result = compare_stage(stage, reference[stage.name], measured[stage.name])
            if stage.name == "kept_indices" and not result.ok and units is not None:
                result = _judge_tie(result, reference, measured, units)
                tied = result.ok
            if stage.name == "kept_indices" and units is not None:
                result = replace(result, chosen=_chosen(reference, measured, units))
            results.append(result)
    return ParityReport(tuple(results))


def _further(measured: Mapping[str, Array]) -> list[tuple[str, str]]:
    """(name, stage) of arrays "<stage> of <graph>"."""
    return [(name, name.partition(_OF)[0]) for name in measured if _OF in name]


def _named(base: str, name: str) -> Stage:
    return replace(next(stage for stage in STAGES if stage.name == base), name=name)


def compare_stage(stage: Stage, reference: Array, measured: Array) -> StageResult:
    """Compare one array with its reference; another shape, or a value that is not a number, diverges."""
    if reference.shape != measured.shape:
        detail = f"shape {list(measured.shape)}, reference {list(reference.shape)}"
        return StageResult(stage.name, None, stage.tolerance, stage.reason, False, detail)
    wide = reference.astype(np.float64)
    difference = np.abs(wide - measured.astype(np.float64))
    largest = float(difference.max()) if difference.size else 0.0
    scale = {OF_MAX: float(np.abs(wide).max()), OF_MEAN: float(np.abs(wide).mean())}.get(stage.scale, 1.0)
    tolerance = stage.tolerance * scale
    ok = largest <= tolerance  # false for NaN
    detail = "" if ok else _first_difference(reference, measured, difference, tolerance)
    result = StageResult(stage.name, largest, tolerance, stage.reason, ok, detail)
    if stage.scale not in (OF_MAX, OF_MEAN):
        return result
    if stage.name.partition(_OF)[0] in _CENTRED:
        reference, measured = _centred(reference), _centred(measured)
    return replace(result, cosine=row_cosine(reference, measured), gain=length_gain(reference, measured))


def _centred(array: Array) -> Array:
    """Each row [last axis] less its mean, in float64; as it is where it has no mean."""
    wide = array.astype(np.float64)
    return wide - wide.mean(axis=-1, keepdims=True) if wide.size and np.isfinite(wide).all() else wide


def row_cosine(reference: Array, measured: Array) -> float | None:
    """Mean cosine of the rows [last axis] of two arrays of one shape, in float64; None where it is no number,
    which JSON could not hold."""
    one, other = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (reference, measured))
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return None
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    # A row of zeros has no direction: it is like another one, and like nothing else.
    cosines = (one * other).sum(axis=1) / np.where(lengths > 0, lengths, 1)
    cosines[(lengths == 0) & (one == other).all(axis=1)] = 1.0
    return float(cosines.mean()) if cosines.size else 1.0


def length_gain(reference: Array, measured: Array) -> float | None:
    """Length of the one array, taken whole, over that of its reference, in float64; None where it is no
    number."""
    one, other = (float(np.linalg.norm(array.astype(np.float64))) for array in (reference, measured))
    if one == 0.0:
        return 1.0 if other == 0.0 else None
    return other / one if np.isfinite(other) else None


def measure(
    generator: Generator, images: Sequence[ImageSource], prompt: str, amount: Amount, new_tokens: int
) -> tuple[dict[str, Array], UnitScores | None]:
    """Run every stage of a bundle, the pruned graph even where everything is kept: arrays by the names of
    `STAGES`.

    `pixel_values` is [-1, last axis], `token_scores` and `kept_indices` are 1-D, unit after unit; the
    features are [placeholders, D] of all images. Where the backend runs further decoder graphs of the bundle,
    "logits of <graph>" and "tokens of <graph>" are theirs.
    """
    pruning = generator.manifest.pruning
    # A default is all that a small image has; asked for, it would be refused.
    default = amount == Amount(pruning.default_ratio, pruning.default_tokens)
    request = Request(
        prompt,
        tuple(images),
        ratio=None if default else 1.0 if amount.everything else amount.ratio,
        tokens=None if default else amount.tokens,
        max_new_tokens=new_tokens,
        ignore_eos=True,
    )
    prepared = generator.preprocess(images)
    plans = [image.plan for image in prepared]
    counts = plan_pruning(request, generator.manifest, plans).counts
    unpruned = generator.encode_unpruned(prepared)
    # Two encoders and a decoder at once would set the peak memory of a build.
    generator.release(contract.VISION_ENCODER)
    encoded = generator.encode_images(prepared, Selection(counts))
    made = generator.prompt(generator.tokenize(request, plans), encoded)
    embeds = generator.embed(made.ids, encoded)
    logits = generator.decoder_run(made.ids.shape[1], made.positions).prefill(embeds)
    tokens = generator.generate(request, encoded).token_ids
    arrays = {
        "pixel_values": np.concatenate([_rows(image.pixel_values) for image in prepared]),
        "kept_counts": np.concatenate([np.asarray(image.counts, np.int64) for image in encoded]),
        "image_features": np.concatenate([image.features for image in unpruned]),
        "token_scores": np.concatenate([own for image in encoded for own in image.scores or ()]),
        "kept_indices": np.concatenate([own for image in encoded for own in image.kept]),
        "pruned_features": np.concatenate([image.features for image in encoded]),
        "input_ids": made.ids,
        "position_ids": made.positions.ids,
        "inputs_embeds": np.asarray(embeds),
        "logits": logits[None],
        "tokens": np.asarray([tokens], np.int64),
    }
    for graph in generator.decoder_graphs[1:]:
        generator.release(generator.decoder_graphs[0])  # one set of weights at a time
        run = generator.decoder_run(made.ids.shape[1] + new_tokens - 1, made.positions, graph)
        arrays |= {f"{name}{_OF}{graph}": array for name, array in _greedy(run, embeds, new_tokens).items()}
        generator.release(graph)
    return arrays, _unit_scores(plans, generator.manifest)


def _greedy(run: DecoderRun, embeds: npt.NDArray[np.float32], new_tokens: int) -> dict[str, Array]:
    logits = run.prefill(embeds)
    first, tokens = logits[None].copy(), [int(logits.argmax())]
    while len(tokens) < new_tokens:
        tokens.append(int(run.step(tokens[-1]).argmax()))
    return {"logits": first, "tokens": np.asarray([tokens], np.int64)}


def _rows(pixel_values: Array) -> Array:
    return pixel_values.reshape(-1, pixel_values.shape[-1])


def _unit_scores(plans: Sequence[ImagePlan], manifest: Manifest) -> UnitScores | None:
    units = [unit for plan in plans for unit in plan.units]
    if manifest.pruning.row_scope == "stitched":
        return None
    if manifest.pruning.strategy != "row":
        return UnitScores(tuple(unit.tokens for unit in units))
    # With padding at its sides a row has fewer tokens than the grid's columns, and its near-ties are not
    # looked for.
    if any(unit.grid is None or unit.valid is not None for unit in units):
        return None
    columns = tuple(unit.grid[1] for unit in units if unit.grid is not None)
    return UnitScores(tuple(unit.tokens for unit in units), columns)


def format_report(report: ParityReport) -> str:
    """The report as a plain-text table, one line per stage; details of a stage follow below its line."""
    lines = [f"{'stage':16}{'difference':>11}{'tolerance':>11}  {'result':9}why this tolerance"]
    for stage in report.stages:
        difference = "-" if stage.max_abs_diff is None else f"{stage.max_abs_diff:.1e}"
        tolerance = "exact" if stage.tolerance == 0.0 else f"{stage.tolerance:.1e}"
        verdict = "skipped" if stage.skipped else "ok" if stage.ok else "DIFFERS"
        lines.append(f"{stage.name:16}{difference:>11}{tolerance:>11}  {verdict:9}{stage.reason}")
        if stage.detail:
            lines.append(f"{'':16}{stage.detail}")
    if report.ok:
        priced = any(" costs " in stage.detail for stage in report.stages)  # see runtime.costs
        rest = ", or costs what its precision may" if priced else ""
        lines.append(f"every stage agrees with the reference{rest}")
    else:
        lines.append(f"first stage that diverges: {report.first_divergence}")
    return "\n".join(lines)


def _first_difference(
    reference: Array, measured: Array, difference: npt.NDArray[np.float64], limit: float
) -> str:
    outside = ~(difference <= limit)
    place = np.unravel_index(int(np.argmax(outside)), outside.shape)
    at = "[" + ", ".join(str(int(axis)) for axis in place) + "]"
    values = f"{measured[place]}, reference {reference[place]}"
    return f"{int(outside.sum())} of {outside.size} differ, first at {at}: {values}"


def _judge_tie(
    result: StageResult, reference: Mapping[str, Array], measured: Mapping[str, Array], units: UnitScores
) -> StageResult:
    """Accept differing indices only where every differing token's score ties with the boundary's."""
    counts, same = reference.get("kept_counts"), measured["kept_counts"]
    if "token_scores" not in reference or counts is None or not np.array_equal(counts, same):
        return result
    if result.max_abs_diff is None:  # other shapes
        return result
    ends, starts = np.cumsum(counts)[:-1], np.cumsum(units.tokens)[:-1]
    scores_by_unit = np.split(reference["token_scores"].astype(np.float64), starts)
    tied: list[int] = []
    for number, (kept, got, scores) in enumerate(
        zip(
            np.split(reference["kept_indices"], ends),
            np.split(measured["kept_indices"], ends),
            scores_by_unit,
            strict=True,
        )
    ):
        if np.array_equal(kept, got):
            continue
        if not _is_choice(got, 1 if units.columns is None else units.columns[number]):
            return result
        if units.columns is not None:
            length = units.columns[number]
            scores = np.repeat(scores.reshape(-1, length).mean(axis=1), length)
        boundary = scores[kept].min()
        swapped = np.setxor1d(kept, got)
        if not (swapped.size and swapped.min() >= 0 and swapped.max() < scores.size):
            return result
        if (np.abs(scores[swapped] - boundary) > TIE_WINDOW * abs(boundary)).any():
            return result
        tied.extend(int(token) for token in swapped)
    detail = f"near-tie: the scores of tokens {tied} are equal within {TIE_WINDOW:g} of the boundary score"
    return StageResult(result.name, result.max_abs_diff, result.tolerance, result.reason, True, detail)


def _plain(stage: StageResult) -> dict[str, Any]:
    """For JSON, which has no NaN and no infinity: a difference is None then, and a tolerance 0."""
    found = asdict(stage)
    for name, none in (("max_abs_diff", None), ("tolerance", 0.0)):
        if found[name] is not None and not np.isfinite(found[name]):
            found[name] = none
    return found


def _chosen(reference: Mapping[str, Array], measured: Mapping[str, Array], units: UnitScores) -> float | None:
    """Sum of the reference's scores of what is kept, between the least it could be (0) and the reference's
    own (1); None where indices and scores do not belong together."""
    wanted, got = reference["kept_indices"], measured["kept_indices"]
    counts, scores = reference.get("kept_counts"), reference.get("token_scores")
    if counts is None or scores is None or wanted.shape != got.shape or scores.size != sum(units.tokens):
        return None
    ends, starts = np.cumsum(counts)[:-1], np.cumsum(units.tokens)[:-1]
    parts = (np.split(wanted, ends), np.split(got, ends), np.split(scores.astype(np.float64), starts))
    if len({len(part) for part in parts}) > 1:
        return None
    lost = most = 0.0
    for kept, other, own in zip(*parts, strict=True):
        if not np.isfinite(own).all() or (other.size and not 0 <= other.min() <= other.max() < own.size):
            return None
        best = own[kept].sum()
        lost += max(0.0, best - own[other].sum())
        most += best - np.sort(own)[: kept.size].sum()
    return 1.0 - lost / most if most > 0 else 1.0


def _depends(stage: Stage, reference: Mapping[str, Array], measured: Mapping[str, Array]) -> bool:
    """Whether a stage follows from the kept tokens; ids do where newlines depend on them too."""
    shapes = reference[stage.name].shape, measured[stage.name].shape
    return stage.name.partition(_OF)[0] in _AFTER_INDICES or (
        stage.name == "input_ids" and shapes[0] != shapes[1]
    )


def _is_choice(kept: Array, columns: int) -> bool:
    """Whether positions are strictly increasing, and whole rows of so many columns."""
    starts = kept[::columns]
    rows = (starts[:, None] + np.arange(columns)).reshape(-1)
    return bool((np.diff(kept) > 0).all() and (starts % columns == 0).all() and np.array_equal(rows, kept))
