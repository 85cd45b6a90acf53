"""The README's table of whole models, from the result that `python -m bench.vlm` wrote.

python -m bench.readme        puts it between its two marks; nothing is measured

A table typed by hand goes stale: a test holds the README to the result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.environment import ROOT
from bench.errors import BenchError
from bench.options import run_script, status
from bench.results import RESULTS, read_result

__all__ = ["BEGIN", "END", "main", "table_of", "updated"]

BEGIN, END = "<!-- from bench.readme -->", "<!-- end of bench.readme -->"
RESULT = "vlm-llava-onevision-0.5b.json"
README = ROOT / "README.md"
SHOWN = (
    ("fopru fp32", ("1", "0.5", "0.3", "0.1")),
    ("fopru int8", ("1", "0.3")),
    ("fopru int4", ("1", "0.3")),
    ("fopru openvino-bf16", ("1", "0.3")),
    ("transformers fp32 sdpa", ("1",)),
    ("transformers bf16 eager", ("1",)),
    ("llama.cpp fp32", ("1", "0.3")),
    ("llama.cpp q8_0", ("1", "0.3")),
    ("llama.cpp q4_0", ("1", "0.3")),
    ("openvino-genai bf16", ("1", "0.3")),
    ("openvino-genai int8", ("1", "0.3")),
    ("onnxruntime-genai fp32", ("1", "0.3")),
)
"""Engines and ratios of the README; the result has all of them."""

_HEAD = (
    "| | ratio | prompt rows | vision s | prefill s | TTFT s | × ratio 1 (predicted) | tokens/s | KV MiB "
    "| peak RSS GB |",
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
)


def table_of(figures: dict[str, Any]) -> str:
    """The Markdown table of a result's figures.

    Raises:
        BenchError: they are of another measurement, or an engine or ratio of the README is missing.
    """
    if not isinstance(figures.get("engines"), dict):
        raise BenchError("the result is of another measurement: give --result one that bench.vlm wrote")
    return "\n".join((*_HEAD, *(_row(figures, name, ratio) for name, ratios in SHOWN for ratio in ratios)))


def _row(figures: dict[str, Any], name: str, ratio: str) -> str:
    own = figures["engines"].get(name, {}).get("ratios", {}).get(ratio)
    if own is None:
        raise BenchError(
            f"the result has no {name} at ratio {ratio}: run python -m bench.vlm with every engine"
        )
    alone = "vision" not in own
    speedup, predicted = own["ttft_speedup"], own["ttft_speedup_predicted"]
    cells = (
        f"{name} (decoder)" if alone else name,
        ratio,
        str(own["prompt_tokens"]),
        "" if alone else f"{own['vision']['median']:.2f}",
        f"{own['prefill']['median']:.2f}",
        "" if alone else f"{own['ttft']['median']:.2f}",
        "" if speedup is None or predicted is None or ratio == "1" else f"{speedup:.2f} ({predicted:.2f})",
        f"{1 / own['decode']['median']:.0f}",
        "" if own["kv_bytes"] is None else f"{own['kv_bytes'] / 2**20:.1f}",
        "" if own["peak_rss"] is None else f"{own['peak_rss'] / 1e9:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def updated(text: str, table: str) -> str:
    """The README with another table between its marks.

    Raises:
        BenchError: the marks are not there, each once and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise BenchError(
            f"README.md needs the lines {BEGIN!r} and {END!r}, each once and in that order: put them back"
        )
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.readme", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--result", type=Path, default=RESULTS / RESULT, help="default: bench/results")
    parser.add_argument("--readme", type=Path, default=README)

    def body(options: argparse.Namespace) -> None:
        text = options.readme.read_text(encoding="utf-8")
        new = updated(text, table_of(read_result(options.result).figures))
        options.readme.write_text(new, encoding="utf-8")
        status(f"{'unchanged' if new == text else 'written'}: {options.readme}")

    return run_script(parser, body, None if arguments is None else list(arguments))


if __name__ == "__main__":
    sys.exit(main())
