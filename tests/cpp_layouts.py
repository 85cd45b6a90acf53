"""Random layouts and sizes, and the answers of C++ probes, for comparing runtime/cpp with runtime/."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from runtime.decode import decode
from runtime.errors import FopruError
from runtime.layouts import ImageLayout

__all__ = ["PUBLISHED", "answers", "or_error", "python_layout", "random_layout", "random_size"]

Record = dict[str, Any]

_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_WHERE = "<row_{row}_col_{column}>{image}"

PUBLISHED: dict[str, Record] = {
    "llava-1.5": {
        "kind": "single",
        "grid": [24, 24],
        "tokens": 576,
        "resize": {"shortest_edge": 336},
        "crop": {"height": 336, "width": 336},
        "pad_to_square": None,
        "prefix_tokens": 1,
    },
    "llava-1.5 padded": {
        "kind": "single",
        "grid": [24, 24],
        "tokens": 576,
        "resize": {"shortest_edge": 336},
        "crop": {"height": 336, "width": 336},
        "pad_to_square": [122, 116, 104],
    },
    "llava-next": {"kind": "anyres", "tile": [336, 336], "grid": [24, 24], "pinpoints": _PINPOINTS},
    "smolvlm": {
        "kind": "split",
        "tile": 512,
        "grid": [8, 8],
        "resize": {"longest_edge": 2048},
        "splitting": True,
        "tile_text": _WHERE,
        "row_end": "\n",
        "overview_text": "\n<global-img>{image}",
        "single_text": "<global-img>{image}",
    },
    "internvl": {
        "kind": "aspect",
        "tile": 448,
        "grid": [16, 16],
        "tiles": [1, 12],
        "text": "<img>{image}</img>",
    },
    "qwen2.5-vl": {
        "kind": "native",
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "window": 4,
    },
}


def random_layout(kind: str, draw: random.Random) -> Record:
    """A layout of a kind that both runtimes take, small enough for thousands of plans."""
    side = draw.choice([1, 2, 3, 5, 7, 14, 16, 32])
    grid = [draw.randint(1, 6), draw.randint(1, 6)]
    made: Record
    if kind == "single":
        edges = [draw.randint(1, 60) for _ in range(5)]
        crop = draw.random() < 0.6
        fixed = not crop or draw.random() < 0.4
        has_grid = draw.random() < 0.8
        made = {
            "grid": grid if has_grid else None,
            "tokens": grid[0] * grid[1] if has_grid else draw.randint(1, 50),
            "resize": {"height": edges[0], "width": edges[1]} if fixed else {"shortest_edge": edges[2]},
            "crop": {"height": edges[3], "width": edges[4]} if crop else None,
            "pad_to_square": [draw.randint(0, 255) for _ in range(3)] if draw.random() < 0.5 else None,
            "prefix_tokens": draw.randint(0, 2),
        }
    elif kind == "anyres":
        tile = [side, draw.choice([1, 3, 8, side])]
        pinpoints = [
            [tile[0] * draw.randint(1, 5), tile[1] * draw.randint(1, 5)] for _ in range(draw.randint(1, 6))
        ]
        made = {"tile": tile, "grid": grid, "pinpoints": pinpoints}
    elif kind == "split":
        edge = side * draw.randint(1, 6) + draw.randint(0, 3)
        made = {
            "tile": side * draw.randint(1, 3),
            "grid": grid,
            "resize": {"longest_edge": edge}
            if draw.random() < 0.7
            else {"height": edge, "width": draw.randint(1, 90)},
            "splitting": draw.random() < 0.8,
            "tile_text": draw.choice(
                [_WHERE, "{image}", "{column}{{row}}{row}{image}", "{row{row}}{image}é"]
            ),
            "row_end": draw.choice(["", "\n", "{row}"]),
            "overview_text": "all {image}{column}",
            "single_text": "one {image}",
        }
    elif kind == "aspect":
        fewest = draw.randint(1, 6)
        made = {
            "tile": side,
            "grid": grid,
            "tiles": [fewest, fewest + draw.randint(0, 20)],
            "text": "<{image}>",
        }
    else:
        smallest = draw.randint(1, 5000)
        made = {
            "patch_size": draw.choice([1, 2, 4, 5, 14]),
            "merge_size": draw.randint(1, 3),
            "temporal_patch_size": draw.randint(1, 3),
            "min_pixels": smallest,
            "max_pixels": smallest * draw.randint(1, 8),
            "window": draw.choice([None, 1, 2, 3, 8]),
        }
    return {"kind": kind, **made}


def random_size(draw: random.Random) -> tuple[int, int]:
    """(height, width): pictures of every size, equal sides, slivers, and what is refused."""
    form = draw.random()
    if form < 0.02:
        return draw.choice([(0, 5), (7, 0), (-3, 4), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (2**31 - 1, 3)])
    most = draw.choice([12, 60, 400, 3000, 20000])
    height = draw.randint(1, most)
    if form < 0.15:
        return height, height * draw.randint(1, 3)
    if form < 0.25:
        return draw.randint(1, 4), draw.randint(1, 3000)
    if form < 0.35:
        return draw.randint(1, 3000), draw.randint(1, 4)
    return height, draw.randint(1, most)


def python_layout(record: Record) -> ImageLayout:
    """The layout as the Python runtime reads it.

    Raises:
        BundleError: it does not take it.
    """
    layout: ImageLayout = decode(ImageLayout, record, "bundle.json.layout")
    return layout


def answers(tool: Path, lines: Iterable[Record]) -> list[Any]:
    """What a probe answers, line by line."""
    sent = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([tool], input=sent, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def or_error(make: Callable[..., Any], *arguments: Any) -> Any:
    """What `make` gives, or the runtime's own error that it raises, as a probe writes it."""
    try:
        return make(*arguments)
    except FopruError as error:
        return {"error": type(error).__name__, "message": str(error)}
