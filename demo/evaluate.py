"""Accuracy of a bundle against ratio, on held-out scenes, through the runtime that a device runs.

    python -m demo.evaluate bundles/checkpoint --ratios 1,0.5,0.3,0.15 --selectors rank,row,random,uniform

Nothing here depends on the bundled checkpoint: any bundle can be asked these questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from demo.curve import EVALUATION_SEED, Point, draw_curve, held_out, points_table, questions_of
from demo.questions import KINDS
from demo.scenes import Scene
from runtime import FopruError, Generator, Request, RequestError, Selection, load_bundle
from runtime.plan import plan_pruning

__all__ = ["evaluate", "main", "plan_points"]

PICTURES = (".png", ".svg", ".pdf")
MAX_NEW_TOKENS = 16  # the longest answer, four digits, takes five


@dataclass(frozen=True)
class Setting:
    """One point to measure."""

    selector: str
    ratio: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and draws; returns the exit status: 2 after an error, 130 after Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    errors = Console(stderr=True)
    try:
        _run(parsed, errors)
    except (FopruError, OSError) as error:
        errors.print(f"error: {error}", style="red", highlight=False, markup=False)
        return 2
    except KeyboardInterrupt:
        errors.print("stopped: nothing was measured to the end", highlight=False)
        return 130
    return 0


def _run(parsed: argparse.Namespace, errors: Console) -> None:
    _check(parsed)
    generator = Generator(load_bundle(parsed.bundle))
    settings = plan_points(parsed.selectors, parsed.ratios)
    scenes = held_out(parsed.samples, parsed.seed)
    points = [
        evaluate(generator, setting, scenes, parsed.seed)
        for setting in track(settings, description="selector x ratio", console=errors, transient=True)
    ]
    title = f"exact match on {parsed.samples} held-out scenes, {parsed.bundle.resolve().name}"
    if parsed.json:
        record = {"bundle": str(parsed.bundle), "samples": parsed.samples, "seed": parsed.seed}
        print(json.dumps(record | {"points": [asdict(p) | {"mean": p.mean} for p in points]}, indent=2))
    else:
        Console().print(points_table(points, title))
    if parsed.plot:
        draw_curve(points, title, parsed.plot)
        errors.print(f"curve drawn in {parsed.plot}", highlight=False)


def _check(parsed: argparse.Namespace) -> None:
    """What would otherwise fail only after the measurement."""
    if parsed.samples < 1:
        raise RequestError(f"samples is {parsed.samples}: give at least 1")
    if parsed.plot is None:
        return
    if not parsed.plot.parent.is_dir():
        raise RequestError(f"cannot draw {parsed.plot}: there is no directory {parsed.plot.parent}")
    if parsed.plot.suffix not in PICTURES:
        raise RequestError(f"cannot draw {parsed.plot}: give a name that ends in {', '.join(PICTURES)}")


def plan_points(selectors: Sequence[str], ratios: Sequence[float]) -> list[Setting]:
    """Every selector at every ratio; ratio 1 and selector ``none`` are one point, which keeps every token."""
    pruning = [selector for selector in selectors if selector != "none"]
    below = [Setting(selector, ratio) for selector in pruning for ratio in ratios if ratio != 1.0]
    whole = 1.0 in ratios or "none" in selectors
    return [Setting("none", 1.0)] * whole + below


def evaluate(generator: Generator, setting: Setting, scenes: Sequence[Scene], seed: int) -> Point:
    """Greedy answers to one question of each kind per scene; the image is encoded once for all of them."""
    right = np.zeros((len(scenes), len(KINDS)))
    kept = 0
    for index, scene in enumerate(scenes):
        asked = [
            Request(
                question.prompt,
                (scene.image,),
                ratio=None if setting.selector == "none" else setting.ratio,
                selector=setting.selector,
                seed=seed + index,
                max_new_tokens=MAX_NEW_TOKENS,
            )
            for question in questions_of(scene, seed + index)
        ]
        prepared = generator.preprocess([scene.image])
        counts = plan_pruning(asked[0], generator.manifest, [image.plan for image in prepared]).counts
        kept = sum(counts[0])
        encoded = generator.encode_images(prepared, Selection(counts, setting.selector, seed + index))
        answers = [generator.generate(request, encoded).text.strip() for request in asked]
        expected = [question.answer for question in questions_of(scene, seed + index)]
        right[index] = [answer == truth for answer, truth in zip(answers, expected, strict=True)]
    exact = dict(zip(KINDS, right.mean(axis=0).tolist(), strict=True))
    return Point(setting.selector, setting.ratio, kept, exact)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="directory made by export.build")
    parser.add_argument(
        "--ratios",
        type=_numbers,
        default=(1.0, 0.5, 0.3, 0.15),
        help="fractions KEPT (default: 1,0.5,0.3,0.15)",
    )
    parser.add_argument(
        "--selectors",
        type=lambda text: tuple(text.split(",")),
        default=("rank", "row", "random", "uniform"),
        help="rank, row, random, uniform, or graph for the bundle's own (default: all but graph)",
    )
    parser.add_argument("--samples", type=int, default=200, help="held-out scenes (default: 200)")
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED, help=f"(default: {EVALUATION_SEED})")
    parser.add_argument("--plot", type=Path, help="write the curve to this picture")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
