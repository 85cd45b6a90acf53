"""All measurements in sequence, each in a process of its own, so that one's memory is not another's.

python -m bench                        everything at full size (about an hour on two cores)
python -m bench --only encoder         one of them
python -m bench --quick                everything on tiny models: checks the scripts, says nothing about speed
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.environment import ROOT, usable_cores
from bench.results import RESULTS
from bench.workspace import DEFAULT_WORK

__all__ = ["MEASUREMENTS", "Step", "main", "plan"]


@dataclass(frozen=True)
class Step:
    """One measurement: its module, its arguments at full size, and those on tiny models (None: left out).

    `threads` says whether it takes `--threads`.
    """

    name: str
    module: str
    full: tuple[str, ...]
    quick: tuple[str, ...] | None
    threads: bool = True


PATCHES = ("--encoder", "patches-4096", "--score-memory", "64MiB", "--rounds", "3")
TINY = ("--model", "tiny", "--rounds", "2")
SMOLVLM = ("--configuration", "smolvlm-256m-decoder")
TINY_PEERS = ("--configuration", "tiny", "--rounds", "1")
# Building comes first: it makes the bundle that `vlm` then measures.
MEASUREMENTS = (
    Step("export", "bench.export_cost", (), ("--model", "tiny", "--rounds", "1"), threads=False),
    Step("encoder", "bench.encoder", (), TINY),
    Step("vlm", "bench.vlm", (), ("--model", "tiny", "--rounds", "1")),
    Step("decoder", "bench.decoder", (), TINY),
    Step("large", "bench.large_model", (), ("--model", "tiny")),
    Step("peers", "bench.peers", (*SMOLVLM, "--visual-tokens", "832"), (*TINY_PEERS, "--rows", "20")),
    Step("openvino-pruning", "bench.peers.openvino_pruning", (), None),
    Step("exactness", "bench.exactness", (), ("--model", "tiny", "--images", "6", "--answers", "2")),
    Step(
        "exporters",
        "bench.exporters",
        (),
        ("--only", "deit eager torchscript", "--images", "2"),
        threads=False,
    ),
    Step("rewrite", "bench.rewrite_cost", (), ("--encoder", "tiny", "--rounds", "1"), threads=False),
    Step("score-clip", "bench.score_share", (), ("--encoder", "tiny", "--rounds", "2")),
    Step("score-siglip", "bench.score_share", ("--encoder", "siglip-so400m-384"), None),
    Step("score-4096", "bench.score_share", PATCHES, None),
    Step("score-4096-opset23", "bench.score_share", (*PATCHES, "--opset", "23"), None),
    Step("rtx", "bench.rtx_build", (), ("--encoder", "tiny")),
    Step(
        "exactness-clip-l",
        "bench.exactness",
        ("--model", "clip-l-336", "--images", "6", "--answers", "0"),
        None,
    ),
    Step("target-graphs", "bench.target_graphs", (), ("--tiny",), threads=False),
    Step("half-precision", "bench.half_precision", (), ("--images", "4")),
    Step(
        "quantize",
        "bench.quantize",
        (),
        ("--model", "tiny", "--samples", "4", "--rounds", "1", "--no-build"),
    ),
    Step(
        "quantize-clip-l",
        "bench.quantize",
        ("--model", "clip-l-336-qwen2-0.5b", "--samples", "16"),
        None,
    ),
    Step("calibration", "bench.calibration", (), ("--samples", "8", "--repeats", "1")),
    Step("families", "bench.families", (), ("--tiny",)),
    Step("tiles", "bench.tiles", (), ("--tiny", "--rounds", "1")),
)


def plan(only: Sequence[str], quick: bool, threads: int) -> list[tuple[str, list[str]]]:
    """(name, `-m` arguments) of the measurements to run; an empty `only` means all."""
    chosen = [step for step in MEASUREMENTS if not only or step.name in only]
    sized = ((step, step.quick if quick else step.full) for step in chosen)
    return [
        (step.name, [step.module, *arguments, *(("--threads", str(threads)) if step.threads else ())])
        for step, arguments in sized
        if arguments is not None
    ]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 when a measurement failed, after running the others."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    names = [step.name for step in MEASUREMENTS]
    parser.add_argument(
        "--only", choices=names, action="append", default=[], help="run this one; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="tiny models, few rounds")
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="default: bundles/bench")
    parser.add_argument(
        "--results", type=Path, help="default: bench/results; with --quick, in the work directory"
    )
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: every usable core")
    options = parser.parse_args(arguments)
    results = options.results or (options.work / "results" if options.quick else RESULTS)
    common = ["--work", options.work.resolve(), "--results", results.resolve()]
    failed = []
    for name, command in plan(options.only, options.quick, options.threads):
        print(f"\n== {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", *command, *map(str, common)], cwd=ROOT, check=False)
        if done.returncode == 130:  # Ctrl-C went to the child as well
            return 130
        if done.returncode != 0:
            failed.append(name)
    if failed:
        print(f"error: {', '.join(failed)} failed: see the messages above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
