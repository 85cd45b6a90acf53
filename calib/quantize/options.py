"""Options of `python -m calib.quantize`, checked before anything is opened."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from calib.errors import OptionError
from calib.precision import CALIBRATED, PARTS, Precision, Precisions, parse_precision
from calib.quantize.targets import check_target, is_tensorrt
from calib.ranges import Method, parse_method
from calib.run_options import DATA, prompt_of

__all__ = ["AUTO", "MIN_CHOSEN", "NONE", "QuantizeOptions", "parse_options"]

AUTO, NONE = "auto", "none"
MIN_CHOSEN = 0.98
"""How good the kept tokens have to be by float32's scores where `--keep-float auto` decides, see
`runtime.parity.StageResult.chosen`."""

_EPILOG = """
vision=int8 rounds weights and activations to 8 bits, with ranges of activations from the data; vision=fp8
does so for chips that have it, and needs a --target. int8 and int4 of the decoder are about weights alone, as
in export.build (int4:block=128 and the like). The bundle is left as it is: a new one is written beside it.
Stop it at any time: what was done is kept, and the same command goes on from there.

Exit status: 0 the new bundle is written, 1 it is, and below what was asked for, 2 an error, 130 Ctrl-C.
"""
_Flag: TypeAlias = tuple[str, Callable[[str], Any], str, str]  # flag, type, metavar, help
_FLAGS: dict[str, tuple[_Flag, ...]] = {
    "what": (
        ("--precision", str, "TEXT", "as vision=int8,decoder=int4; parts left out stay as they are"),
        ("--target", str, "NAME", "write for this target of TensorRT: what is not quantised is float16"),
        ("--output", Path, "DIR", "the new bundle (default: BUNDLE-PRECISION[-TARGET])"),
    ),
    "data": (
        *(flag for flag in DATA if flag[0] != "--samples"),
        ("--samples", int, "N", "use a random subset of so many samples (default 64), a quarter to judge by"),
        (
            "--ratio",
            float,
            "R",
            "fraction of tokens KEPT that ranges are for; the new default (default: the bundle's)",
        ),
        ("--seed", int, "S", "of samples and their split (default 0)"),
    ),
    "how": (
        ("--ranges", str, "NAME", "of activations: minmax, percentile[:99.99] or entropy (default minmax)"),
        ("--keep-float", str, "WHICH", "groups of layers not quantised: auto (default), none, or NAME,NAME"),
        ("--min-cosine", float, "F", "what auto keeps to: mean cosine of features to float32 (default 0.99)"),
        ("--max-new-tokens", int, "N", "length limit of the answers that are compared (default 16)"),
        ("--threads", int, "N", "threads inside one operator"),
        ("--work", Path, "DIR", "folder of what is kept between runs (default: BUNDLE-calibration)"),
    ),
}
_SWITCHES = {
    "--no-awq": "quantise the decoder's weights as they are, without a search for scales",
    "--fresh": "forget earlier results",
    "--json": "print one JSON object instead of tables",
}


@dataclass(frozen=True)
class QuantizeOptions:
    """One quantisation; see `--help`.

    Attributes:
        precisions: what parts become; those of `kept` stay as they are.
        asked: parts that were named.
        target: a name in `fopru_graph.lint.targets.TARGETS`; None: ONNX Runtime, nothing linted.
        ratio: fraction of tokens kept; None: the bundle's default.
        keep_float: `auto`, `none`, or names of groups.
    """

    bundle: Path
    precisions: Precisions
    text: str
    target: str | None
    output: Path
    data: Path
    prompts: Path | None
    prompt: str
    samples: int
    ratio: float | None
    seed: int
    ranges: Method
    keep_float: tuple[str, ...]
    min_cosine: float
    max_new_tokens: int
    threads: int | None
    work: Path
    awq: bool
    fresh: bool
    json: bool

    @property
    def tensorrt(self) -> bool:
        """Whether graphs are written for TensorRT."""
        return is_tensorrt(self.target)


def parse_options(arguments: Sequence[str] | None) -> QuantizeOptions:
    """Options of a command line; argparse exits with 2 on what it cannot parse.

    Raises:
        OptionError: a value outside its range, or options that contradict each other.
    """
    parsed = _parser().parse_args(arguments)
    for name in ("samples", "max_new_tokens", "threads"):
        value = getattr(parsed, name)
        if value is not None and value < 1:
            raise OptionError(f"{name.replace('_', '-')} is {value}: give at least 1")
    if parsed.seed < 0:
        raise OptionError(f"seed is {parsed.seed}: give 0 or more")
    if parsed.ratio is not None and not 0.0 < parsed.ratio <= 1.0:
        raise OptionError(
            f"ratio is {parsed.ratio}, but it is the fraction of tokens kept: give a number in (0, 1], as 0.3"
        )
    if not 0.0 < parsed.min_cosine <= 1.0:
        raise OptionError(f"min-cosine is {parsed.min_cosine}: give a number in (0, 1], as 0.99")
    bundle: Path = parsed.bundle
    name = bundle.absolute().name
    # A variant for TensorRT does not take the place of the one for ONNX Runtime.
    label = "-".join([name, _label(parsed.precision), *([parsed.target] if parsed.target else [])])
    output = parsed.output or bundle.absolute().with_name(label)
    work = parsed.work or bundle.absolute().with_name(f"{name}-calibration")
    _check_folders(bundle, output, work)
    _check_data(parsed.data, output, work)
    precisions, keep_float = _precisions(parsed.precision, parsed.target), _groups(parsed.keep_float)
    if keep_float not in ((AUTO,), (NONE,)) and precisions.vision.name not in CALIBRATED:
        raise OptionError(
            f"keep-float is {parsed.keep_float!r}, which is about a vision encoder in 8 bits, but precision "
            f"is {parsed.precision!r}: add vision=int8, or leave --keep-float out"
        )
    return QuantizeOptions(
        bundle=bundle,
        precisions=precisions,
        text=parsed.precision,
        target=parsed.target,
        output=output,
        data=parsed.data,
        prompts=parsed.prompts,
        prompt=prompt_of(parsed),
        samples=parsed.samples,
        ratio=parsed.ratio,
        seed=parsed.seed,
        ranges=parse_method(parsed.ranges),
        keep_float=keep_float,
        min_cosine=parsed.min_cosine,
        max_new_tokens=parsed.max_new_tokens,
        threads=parsed.threads,
        work=work,
        awq=not parsed.no_awq,
        fresh=parsed.fresh,
        json=parsed.json,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m calib.quantize",
        description="A bundle in fewer bits, with scales from your own pictures, and what that costs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("bundle", type=Path, help="float32 directory made by `python -m export.build`")
    for title, flags in _FLAGS.items():
        group = parser.add_argument_group(title)
        for flag, kind, metavar, text in flags:
            needed = flag in ("--data", "--precision")
            group.add_argument(flag, type=kind, metavar=metavar, help=text, required=needed)
    for flag, text in _SWITCHES.items():
        parser.add_argument(flag, action="store_true", help=text)
    parser.set_defaults(
        samples=64, seed=0, ranges="minmax", keep_float=AUTO, min_cosine=0.99, max_new_tokens=16
    )
    return parser


def _precisions(text: str, target: str | None) -> Precisions:
    rest = Precision("fp16") if is_tensorrt(target) else None
    found = parse_precision(text, rest)
    if found.vision.name == "int8":
        if found.vision != Precision("int8"):
            raise OptionError(
                f"precision of vision is {found.vision.text()}, but its 8 bits have a scale per channel and "
                "no options: give vision=int8"
            )
        found = replace(found, vision=Precision("w8a8"))
    check_target(target, found)
    if all(getattr(found, part).name == "fp32" for part in PARTS):
        raise OptionError(f"precision is {text!r}, which changes nothing: give vision=int8,decoder=int4")
    return found


def _check_folders(bundle: Path, output: Path, work: Path) -> None:
    """A bundle holds what its manifest lists, and the old folder of an output is removed."""
    if output.resolve() == bundle.resolve():
        raise OptionError(
            f"output is the bundle {bundle} itself, which stays as it is: give --output another name"
        )
    for flag, path, other in (
        ("output", output, bundle),
        ("work", work, bundle),
        ("work", work, output),
    ):
        if path.resolve().is_relative_to(other.resolve()):
            raise OptionError(
                f"{flag} is {path}, which is inside the bundle {other}: give --{flag} another folder"
            )


def _check_data(data: Path, output: Path, work: Path) -> None:
    """A bundle has pictures, which would be data of the next run."""
    for flag, path in (("output", output), ("work", work)):
        if data.is_dir() and path.resolve().is_relative_to(data.resolve()):
            raise OptionError(
                f"{flag} is {path}, which is inside the data {data}, and would be data of the next run: give "
                f"--{flag} another folder"
            )


def _groups(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(names) or (len(names) > 1 and {AUTO, NONE} & set(names)):
        raise OptionError(f"keep-float is {text!r}: give auto, none, or names of groups, as layers.0.mlp")
    return names


def _label(text: str) -> str:
    """What a folder is called after a precision."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in text)
    return "-".join(part for part in kept.split("-") if part) or "quantised"
