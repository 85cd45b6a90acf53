"""Is a bundle the same computation as PyTorch? Counted over many pictures, with the largest differences.

    python -m bench.exactness                    the demo checkpoint, 200 pictures, 12 answers of 32 tokens
    python -m bench.exactness --model clip-l-336 --images 6 --answers 0

Two questions: does the pruned graph at ratio 1 give the bits of the unpruned graph, and does every stage at
the bundle's ratio equal a plain PyTorch implementation (`export.oracle`)? The stages, tolerances and the rule
for near-ties are those of `runtime.parity`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from bench.configurations import CONFIGURATIONS
from bench.environment import describe_environment
from bench.errors import BenchError
from bench.images import mixed_images
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.processors import PROMPT
from bench.results import Result, Table
from bench.torch_reference import load_reference
from bench.workspace import DEMO, single_layout
from runtime import Generator, load_bundle
from runtime.counts import kept_count
from runtime.parity import STAGES, ParityReport, compare, measure
from runtime.plan import Amount
from runtime.reuse import NO_REUSE
from runtime.vision import Selection

__all__ = ["Tally", "differing_elements", "main", "measure_exactness"]

EQUAL, NEAR_TIE, DIFFERENT = "equal", "near-tie", "different"
NEW_TOKENS = 32
DEMO_PROMPT = "Read the digits from left to right."


@dataclass(frozen=True)
class Sizes:
    """How many pictures to compare, and for how many of them to compare a whole answer."""

    images: int
    answers: int

    def __post_init__(self) -> None:
        if not 0 <= self.answers <= self.images or self.images < 1:
            raise BenchError(
                f"images is {self.images} and answers {self.answers}: compare at least 1 picture, and "
                "answers to at most that many"
            )


@dataclass
class Tally:
    """What was seen so far, over pictures."""

    elements: int = 0
    differing: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    diverged: Counter[str] = field(default_factory=Counter)
    largest: dict[str, float] = field(default_factory=dict)
    tightest: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, outcome: ParityReport, *, whole_answer: bool) -> None:
        """Count one picture; `whole_answer` says that its tokens are an answer and not only the first one."""
        if outcome.first_divergence is not None:
            self.diverged[outcome.first_divergence] += 1
        for stage in outcome.stages:
            if stage.name == "kept_indices":
                self.kept[_kept_verdict(stage.ok, stage.detail)] += 1
            if stage.detail and not stage.skipped:
                self.remarks.append(f"{stage.name}: {stage.detail}")
            if stage.name == "tokens" and whole_answer and not stage.skipped:
                self.answers[EQUAL if stage.ok else DIFFERENT] += 1
            if stage.max_abs_diff is not None and not stage.skipped:
                self.largest[stage.name] = max(self.largest.get(stage.name, 0.0), stage.max_abs_diff)
                used = stage.max_abs_diff / stage.tolerance if stage.tolerance else 0.0
                self.tightest[stage.name] = max(self.tightest.get(stage.name, 0.0), used)


def differing_elements(first: np.ndarray, second: np.ndarray) -> int:
    """How many float32 elements have different bits; arrays of different shapes differ everywhere."""
    if first.shape != second.shape:
        return int(max(first.size, second.size))
    return int(np.count_nonzero(first.view(np.int32) != second.view(np.int32)))


def measure_exactness(name: str, sizes: Sizes, settings: Settings) -> Result:
    """Compare the bundle of one checkpoint with PyTorch, picture by picture."""
    import torch

    torch.set_num_threads(settings.threads)
    bundle = load_bundle(settings.workspace.bundle(name), verify=False)
    reference_model = load_reference(settings.workspace.checkpoint(name))
    generator = Generator(bundle, threads=settings.threads, reuse=NO_REUSE)
    layout, amount = single_layout(bundle), Amount(ratio=settings.workspace.ratio)
    prompt = DEMO_PROMPT if name == DEMO else PROMPT
    pictures = mixed_images(sizes.images, layout.image_size[0], seed=0)
    tally = Tally()
    for number, picture in enumerate(_interleaved(pictures)):
        if number % 20 == 0:
            status(f"picture {number + 1} of {sizes.images}")
        image = Image.fromarray(picture)
        _compare_at_ratio_one(generator, image, tally)
        whole = number < sizes.answers
        new_tokens = NEW_TOKENS if whole else 1
        reference = reference_model.arrays(bundle, (image, prompt), amount, new_tokens)
        measured, units = measure(generator, [image], prompt, amount, new_tokens)
        tally.add(compare(reference, measured, units), whole_answer=whole)
    counts = {
        "tokens": layout.tokens,
        "kept": kept_count(layout.tokens, settings.workspace.ratio),
        "pictures": {kind: len(found) for kind, found in pictures.items()},
    }
    return _result(name, tally, counts, settings.threads)


def _interleaved(pictures: dict[str, list[Any]]) -> Iterable[Any]:
    """Pictures of all kinds in turn, so that the first few hold every kind."""
    for place in range(max(map(len, pictures.values()))):
        yield from (found[place] for found in pictures.values() if place < len(found))


def _compare_at_ratio_one(generator: Generator, image: Image.Image, tally: Tally) -> None:
    prepared = generator.preprocess([image])
    everything = tuple(tuple(unit.prunable for unit in one.plan.units) for one in prepared)
    (unpruned,) = generator.encode_unpruned(prepared)
    (whole,) = generator.encode_images(prepared, Selection(everything))
    tally.elements += unpruned.features.size
    tally.differing += differing_elements(unpruned.features, whole.features)


def _kept_verdict(ok: bool, detail: str) -> str:
    """A stage of integers that passed with a remark passed as a near-tie."""
    if not ok:
        return DIFFERENT
    return NEAR_TIE if detail else EQUAL


def _result(name: str, tally: Tally, counts: dict[str, Any], threads: int) -> Result:
    compared = sum(tally.kept.values())
    figures = counts | {
        "model": name,
        "ratio_one_elements": tally.elements,
        "ratio_one_differing_elements": tally.differing,
        "kept_indices": {verdict: tally.kept[verdict] for verdict in (EQUAL, NEAR_TIE, DIFFERENT)},
        "answers": {verdict: tally.answers[verdict] for verdict in (EQUAL, DIFFERENT)},
        "new_tokens": NEW_TOKENS,
        "first_divergences": dict(tally.diverged),
        "remarks": tally.remarks,
        "largest_difference": tally.largest,
        "largest_share_of_tolerance": tally.tightest,
    }
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts["pictures"].items())
    answers = sum(tally.answers.values())
    notes = (
        f"Ratio 1: {tally.differing} of {tally.elements:,} feature elements differ from the unpruned graph.",
        f"Kept indices, {counts['kept']} of {counts['tokens']}: equal on {tally.kept[EQUAL]} of {compared} "
        f"pictures ({kinds}), {tally.kept[NEAR_TIE]} near-ties, {tally.kept[DIFFERENT]} different.",
        f"Greedy answers of {NEW_TOKENS} tokens: {tally.answers[EQUAL]} of {answers} equal.",
        f"Pictures with a stage out of tolerance: {sum(tally.diverged.values())} of {compared}.",
    )
    return Result(
        f"exactness-{name}", describe_environment(threads), figures, {}, (_table(name, tally),), notes
    )


def _table(name: str, tally: Tally) -> Table:
    rows = tuple(
        (
            stage.name,
            f"{tally.largest[stage.name]:.3g}",
            f"{stage.tolerance:g} {stage.scale}" if stage.tolerance else "exact",
            f"{100 * tally.tightest[stage.name]:.1f}" if stage.tolerance else "",
            str(tally.diverged[stage.name]),
        )
        for stage in STAGES
        if stage.name in tally.largest
    )
    columns = ("stage", "largest |difference|", "tolerance", "% of tolerance used", "first to diverge on")
    return Table(
        f"{name}: the bundle against PyTorch over {sum(tally.kept.values())} pictures", columns, rows
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 1 when something is not as exact as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.exactness", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", choices=[DEMO, *sorted(CONFIGURATIONS)], default=DEMO)
    parser.add_argument("--images", type=int, default=200, help="pictures to compare (default 200)")
    parser.add_argument(
        "--answers", type=int, default=12, help="pictures with a whole answer compared (default 12)"
    )
    add_common_options(parser, rounds=None)
    exact = True

    def body(options: argparse.Namespace) -> None:
        nonlocal exact
        settings = settings_from(options)
        result = measure_exactness(options.model, Sizes(options.images, options.answers), settings)
        report(result, settings)
        exact = not result.figures["ratio_one_differing_elements"] and not result.figures["first_divergences"]

    return run_script(parser, body, arguments) or int(not exact)


if __name__ == "__main__":
    sys.exit(main())
