"""Writes the sample pictures: ``python -m demo.make_samples``. Held-out scenes; the file name says what is in them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from demo.scenes import Layout, draw_scene

__all__ = ["main"]

# One scene per number of digits; the seeds were picked by eye for variety of photograph and colour.
SEEDS = {1: 3, 2: 5, 3: 8, 4: 2}
DEFAULT_OUTPUT = Path(__file__).resolve().parent / "images"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws and saves; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.make_samples", description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="directory (default: demo/images)")
    output: Path = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)
    for digits, seed in SEEDS.items():
        scene = draw_scene("test", Layout(min_digits=digits, max_digits=digits), seed)
        path = output / f"digits_{'_'.join(map(str, scene.digits))}.png"
        Image.fromarray(scene.image).save(path, optimize=True)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
