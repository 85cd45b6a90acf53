"""Options of `python -m calib.ratio`, checked before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calib.constraints import DEFAULT_AGREEMENT, Constraint, bytes_of, seconds_of
from calib.errors import OptionError
from calib.run_options import (
    DATA,
    DEFAULT_PROMPT,
    LIMITS,
    LIMITS_TITLE,
    RATIOS,
    Flag,
    RunOptions,
    make_parser,
    measurement,
    ratios_of,
    run_values,
)
from calib.settings import SELECTORS

__all__ = ["DEFAULT_PROMPT", "SEARCHES", "RatioOptions", "parse_options"]

SEARCHES = ("layer", "aggregation")
_WORK = "calibration"
_EPILOG = """
A ratio is the fraction of visual tokens KEPT. With --min-agreement the lowest ratio is picked that meets
every limit; with --max-ttft or --max-kv alone the highest. The pick becomes the bundle's default ratio;
--dry-run leaves the bundle as it is. The baselines random, uniform and resize are always measured beside.
Stop it at any time: what was measured is kept, and the same command goes on from there.

Exit status: 0 a ratio was picked, 1 nothing meets the limits, 2 an error, 130 Ctrl-C.
"""

_SEARCH: tuple[Flag, ...] = (
    ("--selectors", str, "A,B", f"of {', '.join(SELECTORS)} (default: all that the bundle can have)"),
    RATIOS,
    ("--search", str, "A,B", f"also search what scores tokens: {', '.join(SEARCHES)}"),
    ("--layers", str, "N,N", "0-based encoder layers that --search layer tries (default: all)"),
)


@dataclass(frozen=True)
class RatioOptions(RunOptions):
    """One calibration; see `--help`.

    Attributes:
        selectors: None: all that the bundle can have.
        ratios: tried instead of a search; None: search.
        search: of `SEARCHES`.
        layers: candidates of the search over layers; None: all that the encoder has.
    """

    constraint: Constraint
    selectors: tuple[str, ...] | None
    ratios: tuple[float, ...] | None
    search: tuple[str, ...]
    layers: tuple[int, ...] | None


def parse_options(arguments: Sequence[str] | None) -> RatioOptions:
    """Options of a command line; argparse exits with 2 on what it cannot parse.

    Raises:
        OptionError: a value outside its range, or options that contradict each other.
    """
    parser = make_parser(
        "calib.ratio",
        "How low can the ratio go on your own pictures? Measures, picks, and writes the default.",
        _EPILOG,
        {"data": DATA, LIMITS_TITLE: LIMITS, "search": _SEARCH, "measurement": measurement(_WORK)},
    )
    parsed = parser.parse_args(arguments)
    run = run_values(parsed, _WORK)
    least = parsed.min_agreement
    if least is None and parsed.max_ttft is None and parsed.max_kv is None:
        least = DEFAULT_AGREEMENT
    search = _names("search", parsed.search, SEARCHES) or ()
    layers = None if parsed.layers is None else _layers(parsed.layers)
    if layers is not None and "layer" not in search:
        raise OptionError("--layers names candidates of a search over layers: add --search layer")
    return RatioOptions(
        **run,
        constraint=Constraint(
            least,
            parsed.metric,
            None if parsed.max_ttft is None else seconds_of(parsed.max_ttft),
            None if parsed.max_kv is None else bytes_of(parsed.max_kv),
        ),
        selectors=_names("selectors", parsed.selectors, SELECTORS),
        ratios=None if parsed.ratios is None else ratios_of(parsed.ratios),
        search=search,
        layers=layers,
    )


def _names(option: str, text: str | None, allowed: Sequence[str]) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in allowed:
            raise OptionError(f"{option} has {name!r}, expected some of {', '.join(allowed)}")
    return names


def _layers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if not (part.isascii() and part.isdigit())]:
        raise OptionError(f"layers has {wrong[0]!r}: give 0-based encoder layers, as 3,5,7")
    return tuple(dict.fromkeys(int(part) for part in parts))
