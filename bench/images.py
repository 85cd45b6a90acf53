"""Seeded pictures to measure on: uniform noise, crops of photographs, and scenes of handwritten digits.

Noise is the hardest case for exactness (scores lie close together), photographs and digits are what a user
sends.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

__all__ = ["block_image", "digit_scenes", "mixed_images", "noise_images", "photo_crops"]

Picture = npt.NDArray[np.uint8]


def noise_images(count: int, side: int, seed: int) -> list[Picture]:
    """`count` pictures uint8 [side, side, 3] of uniform noise."""
    rng = np.random.default_rng((seed, 0))
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


def block_image(height: int, width: int, seed: int) -> Picture:
    """A picture uint8 [height, width, 3] of plain blocks of 16 x 16 pixels, each of a colour of its own."""
    rng = np.random.default_rng((seed, 2))
    blocks = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width])


def photo_crops(count: int, seed: int) -> list[Picture]:
    """Crops uint8 [h, w, 3] of odd sizes, 80 pixels and more, from scikit-learn's two sample photographs."""
    from sklearn.datasets import load_sample_images

    photographs = [np.asarray(photo, dtype=np.uint8) for photo in load_sample_images().images]
    rng = np.random.default_rng((seed, 1))
    crops = []
    for index in range(count):
        photo = photographs[index % len(photographs)]
        height, width = (int(rng.integers(80, size + 1)) for size in photo.shape[:2])
        top, left = (
            int(rng.integers(0, full - part + 1))
            for full, part in zip(photo.shape, (height, width), strict=False)
        )
        crops.append(np.ascontiguousarray(photo[top : top + height, left : left + width]))
    return crops


def digit_scenes(count: int, seed: int) -> list[Picture]:
    """The demo's scenes of held-out digits over photographs, uint8 [112, 112, 3]."""
    from demo.scenes import Layout, draw_scenes

    return [scene.image for scene in draw_scenes("test", Layout(), seed, count)]


def mixed_images(count: int, side: int, seed: int) -> dict[str, list[Picture]]:
    """`count` pictures by kind: half noise, the rest photographs and digit scenes in equal parts.

    Without scikit-learn, which carries photographs and digits, all of them are noise.
    """
    if find_spec("sklearn") is None:
        return {"noise": noise_images(count, side, seed)}
    photos, digits = count // 4, count // 4
    return {
        "noise": noise_images(count - photos - digits, side, seed),
        "photographs": photo_crops(photos, seed),
        "digits": digit_scenes(digits, seed),
    }
