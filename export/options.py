"""What a user may choose about a build, checked before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calib.precision import CALIBRATED, FLOAT32, PARTS, Precision, Precisions, parse_precision
from export.errors import OptionError

if TYPE_CHECKING:
    from export.families import EncoderInfo
    from runtime.layouts import ImageLayout

__all__ = [
    "AGGREGATIONS",
    "DEFAULT_MODEL",
    "DEFAULT_RATIO",
    "NEWLINE_POLICIES",
    "OPSETS",
    "POSITION_POLICIES",
    "ROW_SCOPES",
    "STRATEGIES",
    "TARGETS",
    "BuildOptions",
    "precision_for",
]

DEFAULT_MODEL = "demo/checkpoint"
DEFAULT_RATIO = 0.3
# As in fopru_graph, which cannot be asked before the packages it needs are known to be there.
STRATEGIES = ("rank", "row")
AGGREGATIONS = ("col_mean", "col_mean_patch", "cls")
OPSETS = (20, 23)
TARGETS = ("jetpack6", "jetpack7", "tensorrt10", "tensorrt11", "tensorrt-rtx", "ort")
_TENSORRT_PRECISION = "fp16"  # what every chip of a TensorRT target is fast in
# As in runtime.manifest.
POSITION_POLICIES = ("renumber", "original")
ROW_SCOPES = ("tile", "stitched")
NEWLINE_POLICIES = ("keep_all", "keep_nonempty", "drop")

_TWO_TILES = (512, 1024)  # two tiles side by side fit this best, however many or large a layout has


def precision_for(target: str | None, text: str | None) -> Precisions:
    """What `--precision` says, and for parts that it leaves out what the target computes in: fp16 for
    TensorRT, fp32 for all else.

    Raises:
        OptionError: an unknown part, precision or option, or a part twice.
    """
    if target in (None, "ort"):
        return parse_precision("fp32" if text is None else text)
    rest = _TENSORRT_PRECISION
    return parse_precision(rest if text is None else text, Precision(rest))


@dataclass(frozen=True)
class BuildOptions:
    """One build.

    Attributes:
        model: checkpoint directory or hub id.
        output: bundle directory; None: `bundles/<model name>`.
        ratio: fraction of the visual tokens that is KEPT by default, in (0, 1]; None with `tokens` None: 0.3.
        tokens: visual tokens kept per image by default, instead of `ratio`.
        strategy: `rank` (highest scores) or `row` (whole grid rows).
        aggregation: how attention becomes a score (FoPru spec, section 3).
        layer: 0-based encoder layer that scores; None: the family's, usually the one whose output feeds the
            projector.
        position_ids: `renumber` or `original`; None: the family's.
        row_scope: `row` compares the rows of a `tile`, or those of the `stitched` picture.
        newline: which newline vectors stay: `keep_all`, `keep_nonempty` or `drop`; None: `keep_all`.
        opset: 20 (portable) or 23 (attention as one op).
        target: where the bundle is to run, one of `TARGETS`: graphs that it cannot run are left out, and what
            its lint calls an error fails the build. None: for any, nothing is left out.
        precision: of the vision, embedding and decoder graphs.
        images: pictures of the golden tensors; empty: the packaged sample.
        prompt: question of the golden tensors; None: the packaged one.
    """

    model: str
    output: Path | None = None
    ratio: float | None = None
    tokens: int | None = None
    strategy: str = "rank"
    aggregation: str = "col_mean"
    layer: int | None = None
    position_ids: str | None = None
    row_scope: str = "tile"
    newline: str | None = None
    opset: int = 20
    target: str | None = None
    precision: Precisions = FLOAT32
    images: tuple[Path, ...] = ()
    prompt: str | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None and self.tokens is not None:
            raise OptionError(f"got both ratio {self.ratio} and tokens {self.tokens}: give one of the two")
        if self.ratio is not None and not 0.0 < self.ratio <= 1.0:  # also true for NaN
            raise OptionError(
                f"ratio is {self.ratio}, but it is the fraction of tokens kept: give a number in (0, 1], "
                "e.g. 0.3"
            )
        if self.tokens is not None and self.tokens < 1:
            raise OptionError(f"tokens is {self.tokens}, but at least 1 token per image must be kept")
        for name, value, allowed in (
            ("strategy", self.strategy, STRATEGIES),
            ("aggregation", self.aggregation, AGGREGATIONS),
            ("position_ids", self.position_ids, (None, *POSITION_POLICIES)),
            ("row_scope", self.row_scope, ROW_SCOPES),
            ("newline", self.newline, (None, *NEWLINE_POLICIES)),
            ("opset", self.opset, OPSETS),
            ("target", self.target, (None, *TARGETS)),
        ):
            if value not in allowed:
                choices = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise OptionError(f"{name} is {value!r}, expected one of {choices}")
        if self.row_scope == "stitched" and self.strategy != "row":
            raise OptionError(
                f"row_scope is 'stitched', which is about rows, but strategy is {self.strategy!r}: add "
                "--strategy row, or leave --row-scope out"
            )
        calibrated = [part for part in PARTS if getattr(self.precision, part).name in CALIBRATED]
        if calibrated:
            raise OptionError(
                f"precision of {calibrated[0]} is {getattr(self.precision, calibrated[0]).name}, whose "
                "scales of activations come from data: build without it, and run `python -m calib.quantize` "
                "on the bundle"
            )
        if self.target is None and "bf16" in self.precision.names:
            raise OptionError(
                "precision is bf16, which ONNX Runtime does not compute on a processor: give --target a "
                f"TensorRT one ({', '.join(TARGETS[:-1])}), or --precision fp16"
            )
        if self.target is not None:
            from export.targets import check_target  # reads the tables of the lint, which needs packages

            check_target(self.target, self.opset, self.precision)
        if self.layer is not None and self.layer < 0:
            raise OptionError(f"layer is {self.layer}, but layers are counted from 0: give 0 or more")
        for image in self.images:
            if not image.is_file():
                raise OptionError(f"image {image} is not a file: give a picture file, or leave --image out")

    @property
    def keep_ratio(self) -> float | None:
        """The ratio in force, None when `tokens` rules."""
        return DEFAULT_RATIO if self.ratio is None and self.tokens is None else self.ratio

    @property
    def newline_policy(self) -> str:
        """The policy in force."""
        return self.newline or NEWLINE_POLICIES[0]

    def check(self, encoder: EncoderInfo, layout: ImageLayout) -> None:
        """Compare with a model, still before its weights are loaded.

        Raises:
            OptionError: a layer, strategy, aggregation or policy that this model cannot have.
        """
        self._check_layer(encoder)
        if self.aggregation == "cls" and encoder.special_tokens == 0:
            raise OptionError(
                "aggregation is 'cls', but this tower has no CLS token: use col_mean or col_mean_patch"
            )
        if self.strategy == "row" and not layout.has_grid:
            raise OptionError(
                f"strategy is 'row', but the {layout.unit_tokens} tokens of this model make no full grid "
                "(its tower has no CLS and select strategy 'default' drops the first patch): use rank"
            )
        if self.position_ids == "renumber" and layout.position_axes > 1:
            raise OptionError(
                "position_ids is 'renumber', but this model's positions are time, height and width, which "
                "counting anew would lose: use original"
            )
        if self.row_scope == "stitched" and layout.plan(*_TWO_TILES).mosaic is None:
            raise OptionError(
                "row_scope is 'stitched', but this model does not cut images into tiles: leave --row-scope "
                "out"
            )
        if self.newline is not None and not layout.has_newlines:
            raise OptionError(
                f"newline is {self.newline!r}, but this model has no newline vectors: leave --newline out"
            )

    def _check_layer(self, encoder: EncoderInfo) -> None:
        if self.layer is None:
            return
        if self.layer >= encoder.layers:
            raise OptionError(
                f"layer is {self.layer}, but only layers 0..{encoder.layers - 1} reach the features of this "
                "model: give one of these, or leave --layer out"
            )
        if encoder.score_layers is not None and self.layer not in encoder.score_layers:
            allowed = ", ".join(map(str, encoder.score_layers))
            raise OptionError(
                f"layer is {self.layer}, but attention there stays inside windows, and a score needs the "
                f"whole image: give one of {allowed}, or leave --layer out"
            )
