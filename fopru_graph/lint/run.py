"""Lint a model in memory or a file."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir

from fopru_graph.api import load_graph
from fopru_graph.errors import OptionError

# imported for what they enter into the table; the order is the order of the report
from fopru_graph.lint import rules_attention, rules_model, rules_nodes, rules_topk, rules_types
from fopru_graph.lint.graph import GraphView, view_of
from fopru_graph.lint.registry import RULES, Hit, Rule, subject
from fopru_graph.lint.report import SEVERITIES, Finding, LintReport
from fopru_graph.lint.targets import TARGETS, Target

__all__ = ["lint", "lint_file", "lint_view", "target_named"]

_MODULES = (rules_model, rules_attention, rules_topk, rules_nodes, rules_types)


def lint(model: ir.Model, target: str) -> LintReport:
    """Check a model against what a target takes; the model stays as it is, and no weight is read.

    Args:
        model: any ONNX model, pruned or not.
        target: a name in `TARGETS`.

    Raises:
        OptionError: there is no such target.
        UnsupportedGraphError: the graph is too damaged to be read.
    """
    return lint_view(view_of(model), target_named(target))


def lint_file(path: str | os.PathLike[str], target: str) -> LintReport:
    """The same for a file.

    Raises:
        OptionError: there is no such target.
        UnsupportedGraphError: the graph is too damaged to be read.
        GraphFileError: the file or a weight file is missing or damaged.
    """
    chosen = target_named(target)
    return lint_view(view_of(load_graph(path), Path(path)), chosen)


def target_named(name: str) -> Target:
    """A target by name.

    Raises:
        OptionError: there is no such target.
    """
    if name not in TARGETS:
        raise OptionError(f"target is {name!r}, but it is one of {', '.join(TARGETS)}")
    return TARGETS[name]


def lint_view(view: GraphView, target: Target) -> LintReport:
    """The same for a prepared graph."""
    found = [
        _finding(rule, hit, target)
        for rule in RULES.values()
        if target.family in rule.severities
        for hit in rule.check(view, target)
    ]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return LintReport(target.name, tuple(found))


def _finding(rule: Rule, hit: Hit, target: Target) -> Finding:
    op_type, node, where = subject(hit.site)
    severity = hit.severity or rule.severities[target.family]
    return Finding(rule.id, severity, op_type, node, where, hit.message, hit.fix)
