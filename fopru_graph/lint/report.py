"""What lint found in one graph, for people and for scripts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["SEVERITIES", "Finding", "LintReport", "Severity"]

Severity = Literal["error", "warning", "note"]
"""`error`: the target refuses the graph or computes something else. `warning`: it may fail at some input, or
documentation and measurement disagree. `note`: it runs, at a price or with a condition."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong for the target.

    Attributes:
        rule: id of the rule, as in `docs/lint.md`.
        severity: `error`, `warning` or `note`.
        op_type: operator of the node, "" where no node is to blame.
        node: name of the node, else of its first output, else "".
        where: "" for the main graph, else the subgraph or the local function that holds the node.
        message: what is wrong, for this target.
        fix: what to do about it.
    """

    rule: str
    severity: Severity
    op_type: str
    node: str
    where: str
    message: str
    fix: str

    def __str__(self) -> str:
        subject = f"{self.op_type} '{self.node}'" if self.op_type else ""
        place = ", ".join(part for part in (subject, self.where) if part)
        return f"{self.severity} [{self.rule}] {place + ': ' if place else ''}{self.message}; {self.fix}"


@dataclass(frozen=True)
class LintReport:
    """Findings of one graph for one target, the gravest first, within a severity by rule."""

    target: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is an error."""
        return not self.of("error")

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        return {
            "target": self.target,
            "ok": self.ok,
            "counts": {severity: len(self.of(severity)) for severity in SEVERITIES},
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }
