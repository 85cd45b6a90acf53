"""The pictures of a sample as visual tokens, the way each setting makes them, with the time it takes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

from calib.measure.resize import in_corner, prepare_smaller, smaller
from calib.measure.ways import Way, way_of
from calib.measure.whole import WARM_UPS, LoadedBundle
from calib.settings import Setting
from runtime import contract
from runtime.layouts.single import SingleLayout
from runtime.plan import plan_pruning
from runtime.preprocess import PreparedImage, prepare
from runtime.request import Request
from runtime.vision import EncodedImage, Selection

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Encoded", "SampleEncoder", "seed_of"]


@dataclass(frozen=True)
class Encoded:
    """Visual tokens of all pictures, `before`: how many there would be unpruned; seconds."""

    images: tuple[EncodedImage, ...]
    before: int
    preprocess: float
    vision: float


def seed_of(seed: int, digest: str) -> int:
    """The seed of `random` for a sample: the same in every run and on every worker, below 2^31."""
    made = hashlib.sha256(f"{seed} {digest}".encode()).digest()
    return int.from_bytes(made[:4], "big") >> 1


class SampleEncoder:
    """Encodes the pictures of one sample with one bundle, as each setting wants them."""

    def __init__(self, bundle: LoadedBundle, request: Request, seed: tuple[int, str]) -> None:
        """Take the request with opened pictures, and what `seed_of` makes a seed of."""
        self.request = request
        self._bundle = bundle
        self._seed = seed_of(*seed)

    def encode(self, setting: Setting) -> Encoded:
        """Visual tokens as the setting has them.

        Raises:
            FopruError: what the runtime refuses.
            RunError: a picture cannot be made small enough, or tokens cannot be scored so.
        """
        way = way_of(setting, self._bundle.manifest.pruning)
        if way.kind == "resize":
            return self._resized(setting.ratio)
        prepared, seconds = self._prepared
        selection = self._selection(way, setting.ratio, prepared)
        if selection is None:
            self._bundle.generator.session(contract.VISION_ENCODER)
            encoder = self._bundle.whole(None)
            return self._timed(lambda: encoder.encode_unpruned(prepared), seconds)
        if way.kind == "graph":
            return self._by_graph(prepared, selection, setting.ratio)
        encoder = self._bundle.whole(way.scoring)
        if way.scoring is None:
            self._bundle.generator.session(encoder.graph_for(selection))
        return self._timed(lambda: encoder.encode(prepared, selection), seconds)

    @cached_property
    def _prepared(self) -> tuple[tuple[PreparedImage, ...], float]:
        """What the encoder looks at, and the seconds that it took to make it."""
        manifest = self._bundle.manifest

        def make() -> tuple[PreparedImage, ...]:
            return tuple(prepare(image, manifest.layout, manifest.preprocess) for image in self._pictures)

        self._warm_up(("prepare",), make)
        start = time.perf_counter()
        return make(), time.perf_counter() - start

    @cached_property
    def _before(self) -> int:
        """Visual tokens of the pictures, unpruned."""
        layout = self._bundle.manifest.layout
        return sum(self._bundle.visual(layout.plan(image.height, image.width)) for image in self._pictures)

    def _selection(self, way: Way, ratio: float, prepared: Sequence[PreparedImage]) -> Selection | None:
        """How many tokens of each unit, and who chooses them; None: every token stays."""
        if way.kind == "unpruned":
            return None
        request = replace(self.request, selector=way.selector, ratio=ratio)
        plan = plan_pruning(request, self._bundle.manifest, [image.plan for image in prepared])
        return Selection(plan.counts, way.selector, self._seed) if plan.pruned else None

    def _by_graph(self, prepared: Sequence[PreparedImage], selection: Selection, ratio: float) -> Encoded:
        """As a user runs it."""
        generator = self._bundle.generator
        generator.session(generator.vision_graph(selection))

        def make() -> tuple[EncodedImage, ...]:
            return generator.encode_images(prepared, selection)

        self._warm_up(("graph", ratio), make)
        return self._timed(make, self._prepared[1])

    def _resized(self, ratio: float) -> Encoded:
        """Smaller pictures. None is remembered: no other setting has them."""
        manifest, generator = self._bundle.manifest, self._bundle.generator
        layout, config = manifest.layout, manifest.preprocess
        generator.session(contract.VISION_ENCODER)
        if isinstance(layout, SingleLayout):
            start = time.perf_counter()
            corners = [in_corner(image, layout, config, ratio) for image in self._pictures]
            seconds = time.perf_counter() - start
            encoder = self._bundle.whole(None)
            return self._timed(
                lambda: tuple(self._bundle.only(image, kept, encoder) for image, kept in corners), seconds
            )
        forms = [smaller((image.height, image.width), layout, ratio) for image in self._pictures]
        start = time.perf_counter()
        prepared = [
            prepare_smaller(image, form, config) for image, form in zip(self._pictures, forms, strict=True)
        ]
        seconds = time.perf_counter() - start
        encoder = self._bundle.whole(None)
        self._warm_up(("resize", ratio), lambda: generator.encode_unpruned(prepared))
        return self._timed(lambda: encoder.encode_unpruned(prepared), seconds)

    def _timed(self, make: Callable[[], tuple[EncodedImage, ...]], preprocess: float) -> Encoded:
        space = self._bundle.space
        start, spared = time.perf_counter(), space.spared
        images = make()
        vision = time.perf_counter() - start + space.spared - spared
        return Encoded(images, self._before, preprocess, vision)

    def _warm_up(self, key: tuple[object, ...], make: Callable[[], object]) -> None:
        """Do it untimed, if this process has not yet."""
        if key not in self._bundle.warm:
            self._bundle.warm.add(key)
            for _ in range(WARM_UPS):
                make()

    @property
    def _pictures(self) -> tuple[Image.Image, ...]:
        """Opened already."""
        return cast("tuple[Image.Image, ...]", self.request.images)
