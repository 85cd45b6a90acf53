"""Options of `python -m calib.joint`, checked before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calib.constraints import DEFAULT_AGREEMENT, Constraint, bytes_of, seconds_of
from calib.errors import OptionError
from calib.joint.limits import Limits
from calib.run_options import (
    DATA,
    LIMITS,
    LIMITS_TITLE,
    Flag,
    RunOptions,
    make_parser,
    measurement,
    ratios_of,
    run_values,
)
from calib.settings import LADDER

__all__ = ["PREFERENCES", "RATIOS", "JointOptions", "parse_joint_options"]

PREFERENCES = ("memory", "ttft")
RATIOS = LADDER[1::2]
"""What is tried, unless --ratios says otherwise: every second rung, 1 / 1.6 apart."""

_WORK = "joint"
_EPILOG = """
BUNDLE is the float model, whose unpruned answers all others are compared with; each OTHER is the same model
in another precision, made by `python -m calib.quantize` or `python -m export.build --precision`. Every
bundle is measured unpruned and at each ratio, with its own strategy.

With --min-agreement the cheapest is picked that meets every limit: the one that takes least memory, or with
--prefer ttft least time. With limits of cost alone, the most faithful. The ratio that is picked becomes the
default of the bundle that is picked; --dry-run leaves all as they are. Memory is what an answer needs: the
graphs and weight files that run at its ratio, and the largest KV cache.
Stop it at any time: what was measured is kept, and the same command goes on from there.

Exit status: 0 something was picked, 1 nothing meets the limits, 2 an error, 130 Ctrl-C.
"""
_SWEEP: tuple[Flag, ...] = (
    (
        "--ratios",
        str,
        "R,R",
        f"of each precision, beside unpruned (default: {', '.join(f'{ratio:g}' for ratio in RATIOS)})",
    ),
    ("--prefer", str, "COST", f"what cheap means, of {', '.join(PREFERENCES)} (default memory)"),
)
_SIZES: tuple[Flag, ...] = (
    ("--max-weights", str, "SIZE", "graphs and weight files that run, as 500MiB"),
    ("--max-memory", str, "SIZE", "the same and the largest KV cache, as 1GiB"),
)


@dataclass(frozen=True)
class JointOptions(RunOptions):
    """One joint choice; see `--help`.

    Attributes:
        others: bundles of the same model in other precisions, at least one.
        limits: what the choice must meet.
        ratios: below 1, high to low; may be empty: precisions alone are compared.
        prefer: of `PREFERENCES`.
    """

    others: tuple[Path, ...]
    limits: Limits
    ratios: tuple[float, ...]
    prefer: str


def parse_joint_options(arguments: Sequence[str] | None) -> JointOptions:
    """Options of a command line; argparse exits with 2 on what it cannot parse.

    Raises:
        OptionError: a value outside its range, or options that contradict each other.
    """
    parser = make_parser(
        "calib.joint",
        "Which precision at which ratio? Measures both together, picks, and writes the default.",
        _EPILOG,
        {
            "data": DATA,
            LIMITS_TITLE: (*LIMITS, *_SIZES),
            "sweep": _SWEEP,
            "measurement": measurement(_WORK),
        },
    )
    parser.add_argument(
        "others", type=Path, nargs="+", metavar="OTHER", help="the same model in another precision"
    )
    parser.set_defaults(prefer=PREFERENCES[0])
    parsed = parser.parse_args(arguments)
    if parsed.prefer not in PREFERENCES:
        raise OptionError(f"prefer is {parsed.prefer!r}, expected one of {', '.join(PREFERENCES)}")
    ttft = None if parsed.max_ttft is None else seconds_of(parsed.max_ttft)
    sizes = {
        name: None if text is None else bytes_of(text, name)
        for name, text in (
            ("max-kv", parsed.max_kv),
            ("max-weights", parsed.max_weights),
            ("max-memory", parsed.max_memory),
        )
    }
    least = parsed.min_agreement
    if least is None and ttft is None and not any(sizes.values()):
        least = DEFAULT_AGREEMENT
    ratios = RATIOS if parsed.ratios is None else ratios_of(parsed.ratios)
    return JointOptions(
        **run_values(parsed, _WORK),
        others=tuple(parsed.others),
        limits=Limits(
            Constraint(least, parsed.metric, ttft, sizes["max-kv"])
            if any(limit is not None for limit in (least, ttft, sizes["max-kv"]))
            else None,
            parsed.metric,
            sizes["max-weights"],
            sizes["max-memory"],
        ),
        ratios=tuple(sorted({ratio for ratio in ratios if ratio < 1.0}, reverse=True)),
        prefer=parsed.prefer,
    )
