"""What a quantisation prints and writes down: tables, one JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from calib.precision import spoken
from calib.quantize.run import Outcome

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["group_table", "outcome_json", "outcome_lines", "outcome_text", "part_table"]


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Everything, for JSON."""
    task, written, vision = outcome.task, outcome.written, outcome.vision
    options = task.options
    return {
        "bundle": str(task.bundle.path),
        "output": str(written.path),
        "precision": options.precisions.text(),
        "target": options.target,
        "data": task.data.source,
        "samples": {"collect": len(task.split.collect), "judge": len(task.split.judge)},
        "skipped": len(task.data.skipped),
        "ratio": task.ratio,
        "bytes": {"before": outcome.before, "after": outcome.after},
        "vision": None
        if vision is None
        else {
            "ranges": {
                "method": options.ranges.text(),
                "graphs": {
                    graph: {"used": found.used, "failed": len(found.failed), "found": found.found}
                    for graph, found in vision.ranges.items()
                },
            },
            "groups": [
                {"name": loss.group.name, "loss": loss.loss, "max_abs_diff": loss.max_abs_diff}
                for loss in sorted(vision.losses, key=lambda each: -each.loss)
            ],
            "float": list(vision.keep_float),
            "fidelity": vision.fidelity.to_dict(),
            "holds": vision.fidelity.holds(task.options.min_cosine),
        },
        "awq": None if outcome.awq is None else [asdict(fold) for fold in outcome.awq.folds],
        "loss": None if written.loss is None else written.loss.to_dict(),
        "whole": written.whole.to_dict(),
        "parity": None
        if written.parity is None
        else {key: written.parity[key] for key in ("ok", "first_divergence", "components")},
        "lint": dict(written.warnings),
        "notes": list(outcome.notes),
        "failures": list(outcome.failures),
    }


def outcome_text(outcome: Outcome) -> str:
    """The JSON as it is printed and written."""
    return json.dumps(outcome_json(outcome), indent=2) + "\n"


def part_table(outcome: Outcome) -> Table:
    """Size and fidelity of each part."""
    table = _table("part", "precision", "MB before", "after", "cosine", "same kept tokens", "top-1", "KL")
    vision = None if outcome.vision is None else outcome.vision.fidelity
    loss, whole = outcome.written.loss, outcome.written.whole
    for part in outcome.after:
        own = [name for name in outcome.task.graphs if outcome.task.options.precisions.part_of(name) == part]
        precision = outcome.task.precisions[own[0]]
        cells = ["", "", "", ""]
        if part == "vision" and vision is not None:
            cells = [f"{vision.cosine:.5f}", f"{vision.overlap:.1%}", "", ""]
        elif part == "decoder" and loss is not None:
            cells = [f"{loss.mean_cosine:.5f}", "", f"{loss.top1_agreement:.1%}", f"{loss.mean_kl:.4f}"]
        sizes = [f"{outcome.before[part] / 1e6:,.1f}", f"{outcome.after[part] / 1e6:,.1f}"]
        table.add_row(part, spoken(precision), *sizes, *cells)
    sums = [f"{sum(sizes.values()) / 1e6:,.1f}" for sizes in (outcome.before, outcome.after)]
    table.add_row(
        "whole, unpruned", "", *sums, "", "", f"{whole.unpruned_first:.1%}", f"{whole.unpruned_kl:.4f}"
    )
    ratio = outcome.task.ratio
    if ratio < 1.0:
        cells = [f"{whole.overlap:.1%}", f"{whole.first:.1%}", ""]
        table.add_row(f"whole, {ratio:g} kept", "", "", "", "", *cells)
    return table


def group_table(outcome: Outcome) -> Table | None:
    """What each group of layers costs alone, the worst first; None: nothing was measured."""
    if outcome.vision is None:
        return None
    table = _table("group", "1 - cosine", "largest difference", "stays")
    kept = outcome.vision.keep_float
    for loss in sorted(outcome.vision.losses, key=lambda each: -each.loss):
        largest = "-" if loss.max_abs_diff is None else f"{loss.max_abs_diff:.3f}"
        name = loss.group.name
        table.add_row(name, f"{loss.loss:.6f}", largest, "float32" if name in kept else "")
    return table


def outcome_lines(outcome: Outcome) -> Sequence[str]:
    """What else a reader should know, in sentences."""
    whole, task = outcome.written.whole, outcome.task
    count = "1 sample" if whole.samples == 1 else f"{whole.samples} samples"
    samples = f"{count}, which ranges and scales are from" if task.split.shared else f"{count} held out"
    lines = [
        f"on {samples}, at ratio {task.ratio:g}: the first token is that of float32 in {whole.first:.1%}, "
        f"the whole answer in {whole.answer:.1%}",
        f"with every token kept: the first token in {whole.unpruned_first:.1%}",
    ]
    lines += [f"note: {note}" for note in outcome.notes]
    lines += [f"below what was asked for: {failure}" for failure in outcome.failures]
    return [*lines, f"wrote {outcome.written.path}"]


def _table(first: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table
