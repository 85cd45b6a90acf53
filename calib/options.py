"""Options of `python -m calib.ratio`, checked before anything is opened."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from calib.constraints import DEFAULT_AGREEMENT, Constraint, bytes_of, seconds_of
from calib.errors import OptionError
from calib.settings import SELECTORS
from calib.statistics import METRICS

__all__ = ["SEARCHES", "RatioOptions", "parse_options"]

SEARCHES = ("layer", "aggregation")
DEFAULT_PROMPT = "Describe the image."
_EPILOG = """
A ratio is the fraction of visual tokens KEPT. With --min-agreement the lowest ratio is picked that meets
every limit; with --max-ttft or --max-kv alone the highest. The pick becomes the bundle's default ratio;
--dry-run leaves the bundle as it is. The baselines random, uniform and resize are always measured beside.
Stop it at any time: what was measured is kept, and the same command goes on from there.

Exit status: 0 a ratio was picked, 1 nothing meets the limits, 2 an error, 130 Ctrl-C.
"""

_LIMITS = f"limits (default: --min-agreement {DEFAULT_AGREEMENT:g})"
_Flag: TypeAlias = tuple[str, Callable[[str], Any], str, str]  # flag, type, metavar, help
_FLAGS: dict[str, tuple[_Flag, ...]] = {
    "data": (
        ("--data", Path, "PATH", "folder of pictures, JSONL of {image, prompt, answer?}, or saved dataset"),
        ("--prompts", Path, "FILE", "one prompt per line, each asked of every picture"),
        ("--prompt", str, "TEXT", f'asked of pictures without a prompt (default "{DEFAULT_PROMPT}")'),
        ("--samples", int, "N", "use a random subset of so many samples (default: all)"),
    ),
    _LIMITS: (
        ("--min-agreement", float, "F", "fraction that must answer as unpruned, at the lower 95 %% bound"),
        (
            "--metric",
            str,
            "NAME",
            f"what has to agree, of {', '.join(METRICS)} (default first); accuracy needs"
            " labels, and may drop by 1 - F",
        ),
        ("--max-ttft", str, "TIME", "median time to the first token, as 150ms or 0.2s"),
        ("--max-kv", str, "SIZE", "largest KV cache of a sample, as 64MiB or 50MB"),
    ),
    "search": (
        ("--selectors", str, "A,B", f"of {', '.join(SELECTORS)} (default: all that the bundle can have)"),
        ("--ratios", str, "R,R", "try these ratios, and only these, instead of searching"),
        ("--search", str, "A,B", f"also search what scores tokens: {', '.join(SEARCHES)}"),
        ("--layers", str, "N,N", "0-based encoder layers that --search layer tries (default: all)"),
    ),
    "measurement": (
        ("--seed", int, "S", "of samples, resamples and the selector random (default 0)"),
        ("--max-new-tokens", int, "N", "length limit of an answer (default 32)"),
        ("--backend", str, "NAME", "what runs the graphs (default onnxruntime)"),
        ("--threads", int, "N", "threads inside one operator"),
        ("--workers", int, "N", "processes (default: 1, or with --ray one for each core of the cluster)"),
        ("--ray", str, "ADDRESS", "measure on this Ray cluster: auto, host:6379, or local to start one here"),
        ("--work", Path, "DIR", "folder of results and report (default: BUNDLE-calibration)"),
    ),
}
_SWITCHES = {
    "--fresh": "forget earlier results",
    "--dry-run": "leave the bundle as it is",
    "--json": "print one JSON object instead of the table",
    "--no-report": "write no HTML report",
}


@dataclass(frozen=True)
class RatioOptions:
    """One calibration; see `--help`.

    Attributes:
        selectors: None: all that the bundle can have.
        ratios: tried instead of a search; None: search.
        search: of `SEARCHES`.
        layers: candidates of the search over layers; None: all that the encoder has.
        work: folder of results and report; None: `<bundle>-calibration` beside the bundle.
    """

    bundle: Path
    data: Path
    prompts: Path | None
    prompt: str
    constraint: Constraint
    selectors: tuple[str, ...] | None
    ratios: tuple[float, ...] | None
    search: tuple[str, ...]
    layers: tuple[int, ...] | None
    samples: int | None
    seed: int
    max_new_tokens: int
    backend: str
    threads: int | None
    workers: int | None
    ray: str | None
    work: Path
    fresh: bool
    dry_run: bool
    json: bool
    report: bool


def parse_options(arguments: Sequence[str] | None) -> RatioOptions:
    """Options of a command line; argparse exits with 2 on what it cannot parse.

    Raises:
        OptionError: a value outside its range, or options that contradict each other.
    """
    parsed = _parser().parse_args(arguments)
    least, metric = parsed.min_agreement, parsed.metric
    if least is None and parsed.max_ttft is None and parsed.max_kv is None:
        least = DEFAULT_AGREEMENT
    for name in ("samples", "max_new_tokens", "threads", "workers"):
        value = getattr(parsed, name)
        if value is not None and value < 1:
            raise OptionError(f"{name.replace('_', '-')} is {value}: give at least 1")
    if parsed.seed < 0:
        raise OptionError(f"seed is {parsed.seed}: give 0 or more")
    if parsed.prompts is not None and parsed.prompt is not None:
        raise OptionError("--prompt and --prompts both say what is asked: leave one of the two out")
    search = _names("search", parsed.search, SEARCHES) or ()
    layers = None if parsed.layers is None else _layers(parsed.layers)
    if layers is not None and "layer" not in search:
        raise OptionError("--layers names candidates of a search over layers: add --search layer")
    bundle: Path = parsed.bundle
    return RatioOptions(
        bundle=bundle,
        data=parsed.data,
        prompts=parsed.prompts,
        prompt=DEFAULT_PROMPT if parsed.prompt is None else parsed.prompt,
        constraint=Constraint(
            least,
            metric,
            None if parsed.max_ttft is None else seconds_of(parsed.max_ttft),
            None if parsed.max_kv is None else bytes_of(parsed.max_kv),
        ),
        selectors=_names("selectors", parsed.selectors, SELECTORS),
        ratios=None if parsed.ratios is None else _ratios(parsed.ratios),
        search=search,
        layers=layers,
        samples=parsed.samples,
        seed=parsed.seed,
        max_new_tokens=parsed.max_new_tokens,
        backend=parsed.backend,
        threads=parsed.threads,
        workers=parsed.workers,
        ray=parsed.ray,
        work=parsed.work or bundle.absolute().with_name(f"{bundle.absolute().name}-calibration"),
        fresh=parsed.fresh,
        dry_run=parsed.dry_run,
        json=parsed.json,
        report=not parsed.no_report,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m calib.ratio",
        description="How low can the ratio go on your own pictures? Measures, picks, and writes the default.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="directory made by `python -m export.build`")
    for title, flags in _FLAGS.items():
        group = parser.add_argument_group(title)
        for flag, kind, metavar, text in flags:
            group.add_argument(flag, type=kind, metavar=metavar, help=text, required=flag == "--data")
    for flag, text in _SWITCHES.items():
        parser.add_argument(flag, action="store_true", help=text)
    parser.set_defaults(metric="first", seed=0, max_new_tokens=32, backend="onnxruntime")
    return parser


def _names(option: str, text: str | None, allowed: Sequence[str]) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in allowed:
            raise OptionError(f"{option} has {name!r}, expected some of {', '.join(allowed)}")
    return names


def _ratios(text: str) -> tuple[float, ...]:
    ratios = []
    for part in text.split(","):
        try:
            ratio = float(part)
        except ValueError:
            ratio = float("nan")
        if not 0.0 < ratio <= 1.0:
            raise OptionError(
                f"ratios has {part.strip()!r}: give fractions of tokens kept in (0, 1], as 0.5,0.3,0.2"
            )
        ratios.append(ratio)
    return tuple(ratios)


def _layers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if not (part.isascii() and part.isdigit())]:
        raise OptionError(f"layers has {wrong[0]!r}: give 0-based encoder layers, as 3,5,7")
    return tuple(dict.fromkeys(int(part) for part in parts))
