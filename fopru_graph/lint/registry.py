"""The table of rules: each is one function, its id, and how grave a hit is for each family of targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from fopru_graph.lint.graph import GraphView, Site
from fopru_graph.lint.report import Severity
from fopru_graph.lint.targets import Family, Target

__all__ = ["RULES", "Check", "Hit", "Rule", "rule"]


@dataclass(frozen=True)
class Hit:
    """What a rule says about one site, or about the whole graph if there is none; `severity` overrides the
    rule's own."""

    message: str
    fix: str
    site: Site | None = None
    severity: Severity | None = None


Check = Callable[[GraphView, Target], Iterator[Hit]]


@dataclass(frozen=True)
class Rule:
    """`severities` holds the gravest severity per family of targets; a family that is not there is not
    checked."""

    id: str
    summary: str
    severities: dict[Family, Severity]
    check: Check


RULES: dict[str, Rule] = {}
"""Every rule by id, in the order of the report."""


def rule(
    id: str,
    summary: str,
    *,
    tensorrt: Severity | None = None,
    rtx: Severity | None = None,
    ort: Severity | None = None,
) -> Callable[[Check], Check]:
    """Enter a function into the table."""

    def enter(check: Check) -> Check:
        wanted: dict[Family, Severity | None] = {"tensorrt": tensorrt, "tensorrt-rtx": rtx, "ort": ort}
        severities = {family: severity for family, severity in wanted.items() if severity is not None}
        RULES[id] = Rule(id, summary, severities, check)
        return check

    return enter


def subject(site: Site | None) -> tuple[str, str, str]:
    """(operator, node name or first output, place)."""
    if site is None:
        return "", "", ""
    node: ir.Node = site.node
    return node.op_type, site.name, site.where
