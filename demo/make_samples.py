"""Writes the sample pictures, held-out scenes, with their answers: ``python -m demo.make_samples``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from demo.scenes import Layout, draw_scene

__all__ = ["main"]

# (digits, seed): picked for variety among the scenes that the checkpoint answers right.
SAMPLES = {"one": (1, 8), "two": (2, 33), "three": (3, 20), "four": (4, 36)}
DEFAULT_OUTPUT = Path(__file__).resolve().parent / "images"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws and saves; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.make_samples", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="directory (default: demo/images)"
    )
    output: Path = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)
    for word, (digits, seed) in SAMPLES.items():
        scene = draw_scene("test", Layout(min_digits=digits, max_digits=digits), seed)
        path = output / f"{word}_digit{'s' * (digits > 1)}.png"
        Image.fromarray(scene.image).save(path, optimize=True)
        print(path.name, *scene.digits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
