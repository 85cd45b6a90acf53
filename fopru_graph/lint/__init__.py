"""Say what a target's parser will refuse, before it is asked.

    from fopru_graph.lint import lint_file
    report = lint_file("vision_encoder_fopru.onnx", "jetpack6")

Reads the graph and its shapes, no weight, and needs nothing of the target. `fopru_graph.lint.rtx` goes
further where TensorRT for RTX is installed.
"""

from __future__ import annotations

from fopru_graph.lint.registry import RULES, Rule
from fopru_graph.lint.report import SEVERITIES, Finding, LintReport, Severity
from fopru_graph.lint.run import lint, lint_file
from fopru_graph.lint.targets import TARGETS, Target

__all__ = [
    "RULES",
    "SEVERITIES",
    "TARGETS",
    "Finding",
    "LintReport",
    "Rule",
    "Severity",
    "Target",
    "lint",
    "lint_file",
]
