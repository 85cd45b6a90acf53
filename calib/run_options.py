"""Options that every measuring command of `calib` has: the data, how to measure, where results go."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from calib.constraints import DEFAULT_AGREEMENT
from calib.errors import OptionError
from calib.statistics import METRICS

__all__ = [
    "DATA",
    "DEFAULT_PROMPT",
    "LIMITS",
    "LIMITS_TITLE",
    "RATIOS",
    "Flag",
    "RunOptions",
    "make_parser",
    "measurement",
    "prompt_of",
    "ratios_of",
    "run_values",
]

DEFAULT_PROMPT = "Describe the image."
LIMITS_TITLE = f"limits (default: --min-agreement {DEFAULT_AGREEMENT:g})"

Flag: TypeAlias = tuple[str, Callable[[str], Any], str, str]
"""An option: its flag, type, metavar and help."""

DATA: tuple[Flag, ...] = (
    ("--data", Path, "PATH", "folder of pictures, JSONL of {image, prompt, answer?}, or saved dataset"),
    ("--prompts", Path, "FILE", "one prompt per line, each asked of every picture"),
    ("--prompt", str, "TEXT", f'asked of pictures without a prompt (default "{DEFAULT_PROMPT}")'),
    ("--samples", int, "N", "use a random subset of so many samples (default: all)"),
)
LIMITS: tuple[Flag, ...] = (
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
)
RATIOS: Flag = ("--ratios", str, "R,R", "try these ratios, and only these, instead of searching")
_SWITCHES = {
    "--fresh": "forget earlier results",
    "--dry-run": "leave the bundle as it is",
    "--json": "print one JSON object instead of the table",
    "--no-report": "write no HTML report",
}


@dataclass(frozen=True)
class RunOptions:
    """What a command measures, on what, and how; see `--help`.

    Attributes:
        bundle: what is calibrated.
        data, prompts, prompt, samples: see `calib.data.open_data`; `samples` None: all.
        workers: processes; None: the executor's choice.
        work: folder of results and report.
    """

    bundle: Path
    data: Path
    prompts: Path | None
    prompt: str
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


def measurement(work: str) -> tuple[Flag, ...]:
    """Options of how to measure; results go beside the bundle into `BUNDLE-<work>`, if nothing is said."""
    return (
        ("--seed", int, "S", "of samples, resamples and the selector random (default 0)"),
        ("--max-new-tokens", int, "N", "length limit of an answer (default 32)"),
        ("--backend", str, "NAME", "what runs the graphs (default onnxruntime)"),
        ("--threads", int, "N", "threads inside one operator"),
        ("--workers", int, "N", "processes (default: 1, or with --ray one for each core of the cluster)"),
        ("--ray", str, "ADDRESS", "measure on this Ray cluster: auto, host:6379, or local to start one here"),
        ("--work", Path, "DIR", f"folder of results and report (default: BUNDLE-{work})"),
    )


def make_parser(
    prog: str, description: str, epilog: str, groups: Mapping[str, Sequence[Flag]]
) -> argparse.ArgumentParser:
    """A parser of BUNDLE, groups of options by their title, and what to do with the results."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --prompt is not --prompts
    )
    parser.add_argument("bundle", type=Path, help="directory made by `python -m export.build`")
    for title, flags in groups.items():
        group = parser.add_argument_group(title)
        for flag, kind, metavar, text in flags:
            group.add_argument(flag, type=kind, metavar=metavar, help=text, required=flag == "--data")
    for flag, text in _SWITCHES.items():
        parser.add_argument(flag, action="store_true", help=text)
    parser.set_defaults(metric="first", seed=0, max_new_tokens=32, backend="onnxruntime")
    return parser


def run_values(parsed: argparse.Namespace, work: str) -> dict[str, Any]:
    """The fields of `RunOptions`, checked; `work` as in `measurement`.

    Raises:
        OptionError: a value outside its range, or options that contradict each other.
    """
    for name in ("samples", "max_new_tokens", "threads", "workers"):
        value = getattr(parsed, name)
        if value is not None and value < 1:
            raise OptionError(f"{name.replace('_', '-')} is {value}: give at least 1")
    if parsed.seed < 0:
        raise OptionError(f"seed is {parsed.seed}: give 0 or more")
    bundle = parsed.bundle.absolute()
    same = ("bundle", "data", "prompts", "samples", "seed", "max_new_tokens", "backend", "threads", "workers")
    return {name: getattr(parsed, name) for name in (*same, "ray", "fresh", "dry_run", "json")} | {
        "prompt": prompt_of(parsed),
        "work": parsed.work or bundle.with_name(f"{bundle.name}-{work}"),
        "report": not parsed.no_report,
    }


def prompt_of(parsed: argparse.Namespace) -> str:
    """What is asked of pictures without a prompt.

    Raises:
        OptionError: --prompt and --prompts are both given.
    """
    if parsed.prompts is not None and parsed.prompt is not None:
        raise OptionError("--prompt and --prompts both say what is asked: leave one of the two out")
    return DEFAULT_PROMPT if parsed.prompt is None else str(parsed.prompt)


def ratios_of(text: str) -> tuple[float, ...]:
    """`0.5,0.3`.

    Raises:
        OptionError: something else, or a number outside (0, 1].
    """
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
