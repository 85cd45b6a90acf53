"""What a build did, for people (a table) and for machines (`to_dict`)."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from export.targets import TargetVerdict

__all__ = ["BuildReport", "GraphRow", "parity_table", "print_report"]


@dataclass(frozen=True)
class GraphRow:
    """One graph of the bundle; `data_bytes` is its weight file, 0 where it shares another graph's."""

    name: str
    file: str
    nodes: int
    opset: int
    graph_bytes: int
    data_bytes: int


@dataclass(frozen=True)
class BuildReport:
    """The result of one build.

    Attributes:
        bundle: where it is.
        sizes: (width, height) of each golden image.
        tokens, kept: visual tokens of each of them before pruning, and kept by default, as the language model
            gets them: newline vectors and prefix rows count.
        prune: the graph rewriter's own report.
        parity: stage results against PyTorch, as stored in bundle.json.
        steps: seconds per step, in order.
        peak_rss_bytes: highest resident memory of this process so far.
        weight_bytes: size of the checkpoint's weights in float32.
        targets: what the lint of every target says to the graphs.
        target: the one it was built for, None for any.
        notes: what was skipped, or chosen for the user.
        images, prompt: the request of the golden tensors.
    """

    bundle: Path
    model: str
    family: str
    sizes: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]
    kept: tuple[int, ...]
    layer: int
    strategy: str
    aggregation: str
    graphs: tuple[GraphRow, ...]
    prune: dict[str, Any]
    parity: dict[str, Any]
    steps: tuple[tuple[str, float], ...]
    peak_rss_bytes: int
    weight_bytes: int
    targets: tuple[TargetVerdict, ...]
    notes: tuple[str, ...]
    images: tuple[Path, ...]
    prompt: str
    target: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every parity stage agreed with PyTorch, every component is as exact as its precision should
        be, and the target takes every graph."""
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it is not: sentences that go on from "the bundle was written, but"."""
        found = []
        if not self.parity["ok"]:
            found.append(f"{self.parity['first_divergence']} differs from PyTorch: see the table")
        found += [each["failure"] for each in self.parity.get("components", ()) if not each["ok"]]
        for verdict in self.targets:
            if verdict.target == self.target:
                found += [f"target {self.target} refuses {sentence}" for sentence in verdict.refused]
        return tuple(found)

    @property
    def token_lines(self) -> tuple[str, ...]:
        """`before → after`, once if it is the same for all images, else for each size."""
        counts = dict(zip(self.sizes, zip(self.tokens, self.kept, strict=True), strict=True))
        if len(set(counts.values())) == 1:
            return (f"{self.tokens[0]} → {self.kept[0]}",)
        return tuple(f"{before} → {after} at {w} x {h}" for (w, h), (before, after) in counts.items())

    @property
    def next_command(self) -> str:
        """A command that asks the bundle what the golden tensors were made with."""
        images = "".join(f" --image {shlex.quote(_short(image))}" for image in self.images)
        bundle, prompt = shlex.quote(_short(self.bundle)), shlex.quote(self.prompt)
        return f"python -m runtime {bundle}{images} --prompt {prompt}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        plain = dataclasses.asdict(self)
        return {
            **plain,
            "bundle": str(self.bundle),
            "images": [str(image) for image in self.images],
            "ok": self.ok,
            "failures": list(self.failures),
            "steps": [{"name": name, "seconds": round(seconds, 3)} for name, seconds in self.steps],
            "seconds": round(sum(seconds for _, seconds in self.steps), 3),
            "next_command": self.next_command,
        }


def print_report(report: BuildReport, console: Console) -> None:
    """The closing tables of `python -m export.build`."""
    from rich.table import Table
    from rich.text import Text

    graphs = Table(title=Text(f"{report.model} ({report.family})"), title_justify="left")
    for column in ("graph", "nodes", "weights MB", "graph MB", "opset"):
        graphs.add_column(column, justify="left" if column == "graph" else "right")
    for row in report.graphs:
        weights = f"{row.data_bytes / 1e6:.2f}" if row.data_bytes else "shared"
        graphs.add_row(row.name, str(row.nodes), weights, f"{row.graph_bytes / 1e6:.2f}", str(row.opset))
    console.print(graphs)
    console.print(parity_table(report.parity, reasons=False))
    facts = Table.grid(padding=(0, 2))
    seconds = sum(seconds for _, seconds in report.steps)
    for name, value in (
        *(("tokens per image", line) for line in report.token_lines),
        ("scored by", f"layer {report.layer}, {report.aggregation}, strategy {report.strategy}"),
        ("gather", f"{report.prune['gather']} ({report.prune['gather_reason']})"),
        *(("precision costs", line) for line in _loss_lines(report.parity.get("loss"))),
        *((("built for", report.target),) if report.target else ()),
        ("lint", ", ".join(map(str, report.targets))),
        *(("", sentence) for sentence in _sentences(report.targets)),
        ("time and memory", f"{seconds:.1f} s, peak {report.peak_rss_bytes / 1e6:.0f} MB"),
        *(("note", note) for note in report.notes),
        ("bundle", _short(report.bundle)),
    ):
        facts.add_row(name, Text(value))  # as it is: a path or a note may hold brackets
    console.print(facts)
    # Not wrapped, so that it can be copied.
    console.print(f"ask it:\n  {report.next_command}", soft_wrap=True, highlight=False, markup=False)


def _loss_lines(loss: dict[str, Any] | None) -> list[str]:
    if loss is None:
        return []
    return [
        f"{loss['top1_agreement']:.1%} of {loss['positions']} tokens stay the likeliest, cosine of the "
        f"logits {loss['mean_cosine']:.5f} (least {loss['min_cosine']:.5f}), against float32 PyTorch"
    ]


def _sentences(targets: tuple[TargetVerdict, ...]) -> list[str]:
    """Each thing that any target has against the graph, and what to do about it."""
    return list(dict.fromkeys(sentence for verdict in targets for sentence in verdict.findings))


def parity_table(parity: dict[str, Any], *, reasons: bool) -> Table:
    """Stage, difference, tolerance, verdict; with `reasons`, why each tolerance is what it is."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="parity with PyTorch", title_justify="left")
    table.add_column("stage")
    table.add_column("difference", justify="right")
    table.add_column("tolerance", justify="right")
    table.add_column("result")
    if reasons:
        table.add_column("why this tolerance")
    for stage in parity["stages"]:
        difference = "-" if stage["max_abs_diff"] is None else f"{stage['max_abs_diff']:.1e}"
        verdict = "skipped" if stage["skipped"] else "[green]ok[/]" if stage["ok"] else "[red]DIFFERS[/]"
        if stage["ok"] and stage["name"] in parity.get("costs", {}):
            # Of a precision: neither equal nor a fault.
            verdict = f"[yellow]{escape(stage['detail'])}[/]"
        elif stage["detail"]:
            verdict += f" {escape(stage['detail'])}"
        why = [stage["reason"]] if reasons else []
        table.add_row(stage["name"], difference, f"{stage['tolerance']:.1e}", verdict, *why)
    for component in parity.get("components", ()):
        _add_component(table, component, reasons)
    if parity["first_divergence"] is not None:
        table.caption = f"[red]first stage that diverges: {parity['first_divergence']}[/]"
    return table


def _add_component(table: Table, component: dict[str, Any], reasons: bool) -> None:
    """Rows of a part of the bundle that is not float32: how far it is from PyTorch in float32 as a whole."""
    from rich.markup import escape

    floor, chosen, gain = component["floor"] or {}, component.get("chosen"), component.get("gain")
    near = None if gain is None else 1 - abs(gain - 1)
    nearest = None if "gain" not in floor else 1 - floor["gain"]
    for what, found, least in (
        ("1 - cosine", component["cosine"], floor.get("cosine")),
        ("size", near, nearest),
        ("tokens changed", component["top1"], floor.get("top1")),
        ("worth of kept tokens lost", chosen, floor.get("chosen")),
    ):
        if found is None and not (what == "1 - cosine" and floor and chosen is None):
            continue
        ok = found is not None and (least is None or found >= least)
        verdict = "[green]ok[/]" if ok and floor else "said, not judged" if ok else "[red]TOO FAR[/]"
        why = ["a broken graph, not rounding" if floor else "depends on the model"] if reasons else []
        table.add_row(
            escape(f"{component['name']} in {component['precision']}: {what}"),
            "-" if found is None else f"{1 - found:.1e}",
            "-" if least is None else f"{1 - least:.1e}",
            verdict,
            *why,
        )


def _short(path: Path) -> str:
    """Relative to the working directory where that is shorter to type."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
