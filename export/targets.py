"""What targets say to the pruned encoder of a finished build: errors and warnings of the lint, once each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fopru_graph.api import load_graph
from fopru_graph.lint.graph import view_of
from fopru_graph.lint.run import lint_view
from fopru_graph.lint.targets import TARGETS

__all__ = ["TargetVerdict", "verdicts_of"]


@dataclass(frozen=True)
class TargetVerdict:
    """One target: how many errors and warnings its lint has, and each of them with what to do."""

    target: str
    errors: int
    warnings: int
    findings: tuple[str, ...]

    def __str__(self) -> str:
        counts = ((self.errors, "error"), (self.warnings, "warning"))
        found = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts if count]
        return f"{self.target} {' and '.join(found) or 'ok'}"


def verdicts_of(path: Path) -> tuple[TargetVerdict, ...]:
    """Lint one graph for every target; no weight is read."""
    view = view_of(load_graph(path), path)
    verdicts = []
    for target in TARGETS.values():
        report = lint_view(view, target)
        errors, warnings = report.of("error"), report.of("warning")
        # One sentence for many nodes: which node is for `python -m fopru_graph lint`.
        sentences = dict.fromkeys(f"{each.message}: {each.fix}" for each in (*errors, *warnings))
        verdicts.append(TargetVerdict(target.name, len(errors), len(warnings), tuple(sentences)))
    return tuple(verdicts)
