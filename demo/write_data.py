"""Writes held-out scenes with questions as `calib` reads them: pictures and a JSONL beside them.

python -m demo.write_data bundles/demo-data --samples 500
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from demo.curve import EVALUATION_SEED, held_out
from demo.questions import KINDS, ask

__all__ = ["main", "write_data"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws and saves; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.write_data", description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="directory, made where it is not there")
    parser.add_argument("--samples", type=int, default=500, help="questions, a picture each (default: 500)")
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED, help=f"(default: {EVALUATION_SEED})")
    parsed = parser.parse_args(arguments)
    if parsed.samples < 1:
        print(f"error: samples is {parsed.samples}: give at least 1", file=sys.stderr)
        return 2
    print(write_data(parsed.output, parsed.samples, parsed.seed))
    return 0


def write_data(folder: Path, samples: int, seed: int) -> Path:
    """One question per scene, the kinds by turns; returns the JSONL file."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, scene in enumerate(held_out(samples, seed)):
        kind = KINDS[number % len(KINDS)]
        question = ask(kind, scene.digits, np.random.default_rng((seed, number)))
        name = f"scene_{number:04d}.png"
        Image.fromarray(scene.image).save(folder / name)
        rows.append({"image": name, "prompt": question.prompt, "answer": question.answer, "kind": kind})
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


if __name__ == "__main__":
    sys.exit(main())
