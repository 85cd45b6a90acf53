"""What a target has of the precisions that are made from data, and which decoder graphs it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from calib.errors import OptionError, RunError
from calib.precision import PARTS, Precision, Precisions, spoken
from calib.precision.targets import chip_notes, decoder_refusal
from fopru_graph.errors import OptionError as TargetError
from fopru_graph.lint.run import lint_file, target_named
from fopru_graph.lint.targets import Target
from runtime import contract

__all__ = ["check_target", "decoders_of", "is_tensorrt", "lint_graphs", "target_notes"]

_ORT = {"vision": ("fp32", "fp16", "w8a8"), "other": ("fp32", "fp16", "int8", "int4")}
_TENSORRT = {"vision": ("fp16", "w8a8", "fp8"), "embed": ("fp16",), "decoder": ("fp16", "int4")}


def check_target(name: str | None, precisions: Precisions) -> None:
    """Compare a target with what parts become; None is ONNX Runtime.

    Raises:
        OptionError: there is no such target, or it lacks a precision.
    """
    target = None if name is None else _target(name)
    tensorrt = target is not None and target.family != "ort"
    for part in PARTS:
        precision: Precision = getattr(precisions, part)
        allowed = _TENSORRT[part] if tensorrt else _ORT.get(part, _ORT["other"])
        if target is not None:
            allowed = tuple(each for each in allowed if spoken(each) in target.precisions)
        if precision.name not in allowed:
            words = ", ".join(spoken(each) for each in allowed)
            title = "ONNX Runtime" if target is None else f"target {name} ({target.title})"
            hint = " with --precision"
            if precision.name == "fp8" and part == "vision" and not tensorrt:
                hint += ", or a --target of TensorRT, whose chips have fp8"
            raise OptionError(
                f"precision of {part} is {spoken(precision.name)}, but {title} has "
                f"{words}: give one of these{hint}"
            )
    refusal = decoder_refusal(str(name), precisions.decoder) if tensorrt else None
    if refusal is not None:
        raise OptionError(refusal)


def is_tensorrt(name: str | None) -> bool:
    """Whether a target reads graphs with a parser of TensorRT.

    Raises:
        OptionError: there is no such target.
    """
    return name is not None and _target(name).family != "ort"


def decoders_of(tensorrt: bool, precision: Precision, caches: Mapping[str, str]) -> dict[str, str]:
    """The decoder graphs of the new bundle, of those that there are: TensorRT has no operators of ONNX
    Runtime, and weights in few bits for ONNX Runtime are such operators.

    Raises:
        OptionError: none is left.
    """
    if not tensorrt:
        both = precision.weight_only and set(caches) == {contract.DECODER, contract.DECODER_PORTABLE}
        return {name: kind for name, kind in caches.items() if not both or name == contract.DECODER}
    kept = {name: kind for name, kind in caches.items() if name != contract.DECODER}
    if not kept:
        raise OptionError(
            f"the bundle has {', '.join(caches)} alone, whose operators are ONNX Runtime's: build it again "
            f"without --target, for {contract.DECODER_PORTABLE}"
        )
    return kept


def lint_graphs(name: str, graphs: Mapping[str, Path]) -> dict[str, int]:
    """Warnings of a target by graph.

    Raises:
        RunError: an error of its lint.
    """
    counts = {}
    for graph, path in graphs.items():
        report = lint_file(path, name)
        errors = report.of("error")
        if errors:
            first = errors[0]
            raise RunError(
                f"target {name} does not take {graph} ({first.message}): {first.fix}, or choose another "
                "--target"
            )
        counts[graph] = len(report.of("warning"))
    return counts


def target_notes(name: str | None, precisions: Precisions) -> tuple[str, ...]:
    """Chips of a target that lack a precision, in sentences."""
    return () if name is None else chip_notes(_target(name), precisions)


def _target(name: str) -> Target:
    try:
        return target_named(name)
    except TargetError as error:
        raise OptionError(f"{error}: give one of these with --target") from error
