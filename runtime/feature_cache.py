"""Visual tokens kept from request to request: a picture that was encoded the same way runs no encoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from runtime.image_digest import image_digest
from runtime.preprocess import PreparedImage
from runtime.rows import Rows
from runtime.vision import EncodedImage, Selection

__all__ = ["Encode", "FeatureCache", "Key", "image_bytes", "image_digest"]

Encode: TypeAlias = Callable[[Sequence[PreparedImage], Selection | None], Sequence[EncodedImage]]
"""Runs the encoder: the unpruned one where the selection is None."""

Key: TypeAlias = tuple[object, ...]
"""What decides the visual tokens of an image, within one bundle."""


class FeatureCache:
    """The images used last, as many as fit in `limit` bytes; 0 keeps none.

    Belongs to one `Generator`, so to one bundle, whose weights and strategy are therefore in no key. A key is
    what else decides the visual tokens: `image_digest`, the counts of its units, the selector, and the seed
    where the selector draws. Not to be used from two threads at once.
    """

    def __init__(self, limit: int) -> None:
        """Start empty."""
        self._limit = limit
        self._images: OrderedDict[Key, EncodedImage] = OrderedDict()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept, at most the limit."""
        return self._nbytes

    def __len__(self) -> int:
        """Number of images kept."""
        return len(self._images)

    def keys(self, images: Sequence[PreparedImage], selection: Selection | None) -> list[Key]:
        """A key for each image, which takes reading all its pixels; none where nothing is kept."""
        if not self._limit:
            return []
        parts = [_part(images, selection, number, number + 1) for number in range(len(images))]
        return [_key(image, part) for image, part in zip(images, parts, strict=True)]

    def encode(
        self, images: Sequence[PreparedImage], selection: Selection | None, keys: Sequence[Key], run: Encode
    ) -> tuple[tuple[EncodedImage, ...], int]:
        """The visual tokens of all images, whose `keys` are given, and how many of them were there already.

        `run` is called for the others, once for each row of neighbours: the seed of a unit is its place among
        all units. What is kept can no longer be written to.
        """
        if not keys:
            return tuple(run(images, selection)), 0
        found = {key: self._images[key] for key in keys if key in self._images}
        # The same picture twice in one request is encoded once.
        missing = [n for n, key in enumerate(keys) if key not in found and key not in keys[:n]]
        for first, last in _neighbours(missing):
            new = run(images[first:last], _part(images, selection, first, last))
            found.update(zip(keys[first:last], new, strict=True))
        for key in keys:
            self._keep(key, found[key])
        return tuple(found[key] for key in keys), len(images) - len(missing)

    def clear(self) -> None:
        """Forget everything."""
        self._images.clear()
        self._nbytes = 0

    def _keep(self, key: Key, image: EncodedImage) -> None:
        """Make an image the one used last."""
        size = image_bytes(image)
        if key in self._images:
            self._images.move_to_end(key)
            return
        if size > self._limit:
            return
        if isinstance(image.features, np.ndarray):
            image.features.setflags(write=False)  # later answers are made of it
        self._images[key] = image
        self._nbytes += size
        while self._nbytes > self._limit:
            _, oldest = self._images.popitem(last=False)
            self._nbytes -= image_bytes(oldest)


def image_bytes(image: EncodedImage) -> int:
    """Bytes of the arrays of an encoded image, on the host or a device; its plan, made anew for every
    request, is among them."""
    plan, assembly = image.plan, image.assembly
    arrays: list[Rows | None] = [image.features, assembly.source, assembly.places, *image.kept]
    arrays += [*(image.scores or ()), plan.sequence, plan.offsets, plan.lines, *plan.inputs.values()]
    return sum(array.nbytes for array in arrays if array is not None)


def _key(image: PreparedImage, part: Selection | None) -> Key:
    if part is None:
        return (image_digest(image),)
    seed = part.seed if part.selector == "random" else 0
    return image_digest(image), part.counts, part.selector, seed


def _part(
    images: Sequence[PreparedImage], selection: Selection | None, first: int, last: int
) -> Selection | None:
    """The selection of some of the images, with the seeds that their units have among all."""
    if selection is None:
        return None
    before = sum(len(image.plan.units) for image in images[:first])
    return Selection(selection.counts[first:last], selection.selector, selection.seed + before)


def _neighbours(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges, ends excluded."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    return ranges
