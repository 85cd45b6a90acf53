"""What TensorRT and its chips have of the precisions: sentences for builds and for calibration alike."""

from __future__ import annotations

from calib.precision.names import PARTS, Precision, Precisions, spoken
from fopru_graph.lint.targets import PRECISION_CHIPS, Target

__all__ = ["chip_notes", "decoder_refusal"]


def chip_notes(target: Target, precisions: Precisions) -> tuple[str, ...]:
    """Chips of a target that lack a precision, a sentence for each."""
    names = dict.fromkeys(spoken(getattr(precisions, part).name) for part in PARTS)
    return tuple(
        f"{name} needs SM{PRECISION_CHIPS[name]} or newer: not for {', '.join(f'SM{sm}' for sm in lacking)}"
        for name in names
        if (lacking := target.lacking(name))
    )


def decoder_refusal(name: str, precision: Precision) -> str | None:
    """Why TensorRT, as target `name`, has no such decoder of weights in few bits; None: it has."""
    plain = Precision(precision.name, precision.block)
    if not precision.weight_only or precision == plain:
        return None
    return (
        f"precision of decoder is {precision.text()}, but TensorRT ({name}) has neither zero points nor an "
        f"accuracy for weights in {precision.bits} bits: give {plain.text()}"
    )
