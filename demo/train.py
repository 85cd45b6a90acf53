"""Trains the bundled checkpoint: ``python -m demo.train``.

Stage one trains the vision tower, stage two projector and language model on top of it; then the accuracy
curve is measured on held-out digits. Ctrl-C stops, the same command continues.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from demo.curve import EVALUATION_SEED, held_out, points_table
from demo.measure import measure
from demo.model import CHECKPOINT, build_model, build_processor, save_checkpoint
from demo.pretrain import measure_significance, pretrain
from demo.training import Options
from demo.tune import JOINT, TUNE, tune

__all__ = ["main"]

DEFAULT_WORK = Path(__file__).resolve().parent / ".work"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs both stages and writes the checkpoint; returns the exit status."""
    console = Console()
    parsed = _parser().parse_args(arguments)
    options = Options(
        work=parsed.work,
        device=parsed.device,
        precision=parsed.precision,
        seed=parsed.seed,
        batch_size=parsed.batch_size,
        pretrain_steps=parsed.pretrain_steps,
        tune_steps=parsed.tune_steps,
        joint_steps=parsed.joint_steps,
    )
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    if parsed.restart:
        for stage in ("pretrain", "tune", "joint"):
            (options.work / f"{stage}.pt").unlink(missing_ok=True)
    try:
        _run(options, parsed.output, parsed.scenes, console)
    except KeyboardInterrupt:
        console.print(f"Stopped. The same command continues from {options.work}.")
        return 130
    except ValueError as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False)
        return 2
    return 0


def _run(options: Options, output: Path, scenes: int, console: Console) -> None:
    model = build_model(options.seed).to(options.device)
    tokenizer = build_processor().tokenizer
    started = time.monotonic()
    with _progress(console) as progress:
        tower = _Reporter(progress, console, "vision tower", options.pretrain_steps)
        pretrain(model, options, tower)
        tower.finish()
        significance = measure_significance(model, options)
        console.print(
            f"col_mean against the ink of held-out digits: AUC {significance.auc:.3f}, "
            f"{significance.ink_recall:.1%} of the ink in the best 30 % of the patches"
        )
        for course, name in ((TUNE, "language model"), (JOINT, "all together")):
            reporter = _Reporter(progress, console, name, options.steps_of(course.name))
            tune(model, tokenizer, options, course, reporter)
    save_checkpoint(model, output)
    console.print(
        f"{output}: {_megabytes(output):.2f} MB after {(time.monotonic() - started) / 60:.1f} minutes"
    )
    points = measure(model.eval(), tokenizer, held_out(scenes, EVALUATION_SEED), EVALUATION_SEED)
    console.print(points_table(points, f"exact match on {scenes} held-out scenes, PyTorch oracle"))


@dataclass
class _Reporter:
    """Feeds the progress bar with running means, and leaves a line every so often."""

    progress: Progress
    console: Console
    name: str
    steps: int
    every: int = 200
    sums: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.task = self.progress.add_task(self.name, total=self.steps, figures="")

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.sums.setdefault(name, []).append(value)
        line = "  ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in self.sums.items())
        self.progress.update(self.task, completed=step, figures=line)
        if step % self.every == 0 or step == self.steps:
            self.console.print(f"{self.name} {step}/{self.steps}  {line}", highlight=False)
            self.sums.clear()

    def finish(self) -> None:
        """Fills the bar, also where a finished stage was only loaded."""
        self.progress.update(self.task, completed=self.steps)


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        # Only the figures give way in a narrow terminal.
        TextColumn("{task.fields[figures]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    return Progress(*columns, console=console, refresh_per_second=2, expand=True)


def _megabytes(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.iterdir()) / 1e6


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__)
    add: Callable[..., argparse.Action] = parser.add_argument
    add(
        "--output",
        type=Path,
        default=CHECKPOINT,
        help="directory of the checkpoint (default: demo/checkpoint)",
    )
    add(
        "--work",
        type=Path,
        default=DEFAULT_WORK,
        help="directory of the resumable state (default: demo/.work)",
    )
    add("--restart", action="store_true", help="forget the state and begin anew")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    add("--precision", choices=("fp32", "bf16"), default="bf16", help="of the forward pass (default: bf16)")
    add("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    add("--seed", type=int, default=Options.seed, help=f"(default: {Options.seed})")
    add("--batch-size", type=int, default=Options.batch_size, help=f"scenes (default: {Options.batch_size})")
    add(
        "--pretrain-steps",
        type=int,
        default=Options.pretrain_steps,
        help=f"(default: {Options.pretrain_steps})",
    )
    add("--tune-steps", type=int, default=Options.tune_steps, help=f"(default: {Options.tune_steps})")
    add("--joint-steps", type=int, default=Options.joint_steps, help=f"(default: {Options.joint_steps})")
    add("--scenes", type=int, default=1000, help="held-out scenes of the final table (default: 1000)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
