"""Batches of scenes as tensors, drawn one ahead in a thread while the optimiser works on the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from demo.model import IMAGE_MEAN, IMAGE_STD
from demo.scenes import Layout, Scene, Split, draw_scenes

__all__ = ["Batch", "batch_from_scenes", "draw_batch", "one_ahead"]

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Scenes with their pixels and per-patch truth."""

    scenes: list[Scene]
    pixel_values: Tensor  # float32 [images, 3, 112, 112], normalised as the processor does
    patch_ink: Tensor  # float32 [images, 196]
    patch_label: Tensor  # int64 [images, 196]


def batch_from_scenes(scenes: list[Scene]) -> Batch:
    """Stacks scenes; no resize is needed, they are drawn at the tower's size."""
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255.0
    mean, std = torch.tensor(IMAGE_MEAN).view(3, 1, 1), torch.tensor(IMAGE_STD).view(3, 1, 1)
    return Batch(
        scenes=scenes,
        pixel_values=((images - mean) / std).contiguous(),
        patch_ink=torch.from_numpy(np.stack([scene.patch_ink for scene in scenes])),
        patch_label=torch.from_numpy(np.stack([scene.patch_label for scene in scenes])),
    )


def draw_batch(split: Split, layout: Layout, seed: int, count: int) -> Batch:
    """A batch that depends on its arguments only."""
    return batch_from_scenes(draw_scenes(split, layout, seed, count))


def one_ahead(make: Callable[[int], T], steps: range) -> Iterator[tuple[int, T]]:
    """Yields ``(step, make(step))``; the next one is made in a thread meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(make, steps[0]) if steps else None
        for step in steps:
            assert pending is not None
            current = pending.result()
            pending = pool.submit(make, step + 1) if step + 1 in steps else None
            yield step, current
