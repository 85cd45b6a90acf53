"""Targets of a build: what one needs of the options, which graphs it runs, and what its lint says to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from calib.precision import PARTS, Precisions
from calib.precision.targets import chip_notes, decoder_refusal
from export.errors import OptionError
from fopru_graph.api import load_graph
from fopru_graph.lint.graph import GraphView, view_of
from fopru_graph.lint.registry import RULES
from fopru_graph.lint.report import Finding
from fopru_graph.lint.run import lint_view, target_named
from fopru_graph.lint.targets import OP_RELEASES, TARGETS, Target
from runtime import contract, manifest

__all__ = ["TargetVerdict", "check_target", "decoders_of", "is_tensorrt", "target_notes", "verdicts_of"]

# For ONNX Runtime, weights in 8 and 4 bits are products of its own (MatMulNBits). What TensorRT reads instead
# (`calib.precision.qdq`) has no tables in 4 bits, and its 8 bits need scales of activations.
_WRITTEN_FOR = {"tensorrt": ("fp32", "fp16", "bf16"), "ort": ("fp32", "fp16", "int8", "int4")}
_FUSED_NORMS = 23  # the opset from which every language model has RMSNormalization
_FUSED_ATTENTION = 23  # and every vision encoder Attention; decoders are written without it
_OF_DECODERS = {"tensorrt": ("int4",), "ort": ()}


@dataclass(frozen=True)
class TargetVerdict:
    """One target: how many errors and warnings its lint has for the graphs that it runs.

    Attributes:
        refused: each error with the graph and a node, a sentence per graph and rule.
        findings: errors and warnings with what to do, a sentence per graph and message.
    """

    target: str
    errors: int
    warnings: int
    findings: tuple[str, ...]
    refused: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = ((self.errors, "error"), (self.warnings, "warning"))
        found = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts if count]
        return f"{self.target} {' and '.join(found) or 'ok'}"


def check_target(name: str, opset: int, precisions: Precisions) -> None:
    """Compare a target with the options of a build.

    Raises:
        OptionError: an opset that its parser does not take, a precision that no chip of it computes in or
            that is not written for it, or the two of them together.
    """
    target = target_named(name)
    if not target.min_opset <= opset <= target.max_opset:
        raise OptionError(
            f"opset is {opset}, but target {name} takes {target.min_opset} to {target.max_opset} "
            f"({target.opset_source}): leave --opset out for 20"
        )
    young = OP_RELEASES["RMSNormalization"]
    if opset >= _FUSED_NORMS and target.before(*young):
        raise OptionError(
            f"opset is {opset}, which writes norms as RMSNormalization, but target {name} ({target.title}) "
            f"takes that from TensorRT {young[0]}.{young[1]} on: leave --opset out for 20"
        )
    # For the family whose lint calls it an error; full TensorRT is warned about after the export.
    refuses = RULES["attention-kernel"].severities.get(target.family) == "error"
    if opset >= _FUSED_ATTENTION and refuses and precisions.vision.name == "fp32":
        raise OptionError(
            f"opset is {opset} and precision of vision is fp32, but target {name} ({target.title}) builds no "
            "float32 Attention: leave --opset out for 20, or give --precision vision=fp16 or vision=bf16"
        )
    for part in PARTS:
        precision, allowed = getattr(precisions, part).name, _precisions_for(target, part)
        if precision not in allowed:
            raise OptionError(
                f"precision of {part} is {precision}, but target {name} ({target.title}) has "
                f"{', '.join(allowed)}: give one of these with --precision, or leave it out for "
                f"{target.precision}"
            )
    refusal = decoder_refusal(name, precisions.decoder) if is_tensorrt(name) else None
    if refusal is not None:
        raise OptionError(refusal)


def is_tensorrt(name: str | None) -> bool:
    """Whether a target reads graphs with a parser of TensorRT."""
    return name is not None and target_named(name).family != "ort"


def decoders_of(name: str | None, caches: Mapping[str, str]) -> dict[str, str]:
    """The decoder graphs that a target runs, of those that a family has; all of them without a target."""
    return {graph: kind for graph, kind in caches.items() if name is None or _runs(target_named(name), graph)}


def target_notes(name: str | None, precisions: Precisions) -> tuple[str, ...]:
    """What a user should know about a target: chips of it that lack a precision."""
    return () if name is None else chip_notes(target_named(name), precisions)


def verdicts_of(graphs: Mapping[str, Path]) -> tuple[TargetVerdict, ...]:
    """Lint graphs, given by name, for every target; no weight is read.

    A target that cannot run the decoder for ONNX Runtime is not asked about it where the other decoder is
    there.
    """
    views = {name: view_of(load_graph(path), path) for name, path in graphs.items()}
    return tuple(_verdict(target, views) for target in TARGETS.values())


def _verdict(target: Target, views: Mapping[str, GraphView]) -> TargetVerdict:
    found: list[tuple[str, Finding]] = []
    for name, view in views.items():
        if contract.DECODER_PORTABLE in views and not _runs(target, name):
            continue
        report = lint_view(view, target)
        found += [(name, finding) for finding in (*report.of("error"), *report.of("warning"))]
    counts = Counter(finding.severity for _, finding in found)
    # One sentence for many nodes: which nodes is for `python -m fopru_graph lint`.
    sentences = dict.fromkeys(f"{name}: {each.message}: {each.fix}" for name, each in found)
    return TargetVerdict(target.name, counts["error"], counts["warning"], tuple(sentences), _refused(found))


def _refused(found: list[tuple[str, Finding]]) -> tuple[str, ...]:
    grave: dict[tuple[str, str], list[Finding]] = {}
    for name, finding in found:
        if finding.severity == "error":
            grave.setdefault((name, finding.rule), []).append(finding)
    return tuple(_sentence(name, findings) for (name, _), findings in grave.items())


def _sentence(name: str, findings: list[Finding]) -> str:
    first = findings[0]
    more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
    place = f", {first.op_type} '{first.node}'{more}" if first.op_type else ""
    return f"{name}{place}: {first.message}: {first.fix}"


def _runs(target: Target, graph: str) -> bool:
    """Whether a graph is for a target at all: one decoder has operators of ONNX Runtime."""
    return target.family == "ort" or graph != contract.DECODER


def _precisions_for(target: Target, part: str) -> tuple[str, ...]:
    family = "ort" if target.family == "ort" else "tensorrt"
    written = _WRITTEN_FOR[family] + (_OF_DECODERS[family] if part == "decoder" else ())
    # A bundle says what it holds, so that runtimes which do not know a precision refuse it.
    return tuple(name for name in written if name in target.precisions and name in manifest.PRECISIONS)
