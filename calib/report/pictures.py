"""What the report draws of the user's pictures: which tokens were kept of them, and where these lie."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from calib.data.sample import Sample
from calib.errors import RunError
from calib.measure.pictures import open_picture
from calib.settings import Setting
from runtime.assemble import assemble
from runtime.bundle import Bundle, load_bundle
from runtime.errors import FopruError, ImageError
from runtime.layouts import ImagePlan
from runtime.lazy import require
from runtime.overlay import draw_overlay
from runtime.plan import newline_policy, plan_pruning
from runtime.preprocess import prepare
from runtime.request import Request
from runtime.vision import EncodedImage, Selection

if TYPE_CHECKING:
    from runtime.generator import Generator

__all__ = ["Overlay", "Pictures"]

_HEIGHT = 520  # pixels of an overlay in the page
_QUALITY = 88
_TURNED = 5  # EXIF orientations from here on swap height and width
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Overlay:
    """A JPEG; `wide`: it is more than twice as wide as high, as several pictures side by side are."""

    jpeg: bytes
    wide: bool


class Pictures:
    """The pictures of a calibration, as the bundle looks at them.

    Which tokens were kept is in the records, so that nothing is encoded for an overlay; scores are not, and
    are computed again for the few samples that ask for them.
    """

    def __init__(
        self, bundle: Path, backend: str = "onnxruntime", threads: int | None = None, scored: int = 16
    ) -> None:
        """Take the bundle that was calibrated, what runs its encoder, and how many samples are encoded again
        for the map of scores (0: there is none). Opened when first needed."""
        self._path, self._backend, self._threads = bundle, backend, threads
        self.scored = scored

    def plans(self, sample: Sample) -> tuple[ImagePlan, ...]:
        """The plan of each picture, from its size alone.

        Raises:
            RunError: a picture cannot be opened any more.
        """
        try:
            return tuple(self._bundle.manifest.layout.plan(*_size(image)) for image in sample.images)
        except FopruError as error:
            raise _gone(sample, error) from error

    def kept(
        self, plans: Sequence[ImagePlan], setting: Setting, kept: Sequence[int]
    ) -> list[tuple[npt.NDArray[np.int64], ...]]:
        """`Record.kept` taken apart again: positions int64 [K] per picture and unit.

        Raises:
            RunError: there are not as many as the setting keeps of these pictures.
        """
        selector = "rank" if setting.selector == "cls" else setting.selector
        try:
            counts = plan_pruning(_request(setting, selector), self._bundle.manifest, plans).counts
        except FopruError as error:
            raise RunError(
                f"{setting} cannot be planned for these pictures ({error}): measure again"
            ) from error
        sizes = [sum(own) for own in counts]
        if sum(sizes) != len(kept):
            raise RunError(
                f"the record has {len(kept)} kept tokens, but {setting.selector} at ratio {setting.ratio:g} "
                f"keeps {sum(sizes)}: is this the bundle that was measured?"
            )
        parts = np.split(np.asarray(kept, np.int64), np.cumsum(sizes)[:-1]) if sizes else []
        return [_by_unit(plan, part) for plan, part in zip(plans, parts, strict=True)]

    def overlay(self, sample: Sample, setting: Setting, kept: Sequence[int]) -> Overlay:
        """The pictures side by side, what was thrown away dark and grey.

        Raises:
            RunError: a picture cannot be opened any more, or the model's tokens make no grid.
        """
        manifest = self._bundle.manifest
        try:
            prepared = [
                prepare(open_picture(image), manifest.layout, manifest.preprocess) for image in sample.images
            ]
            plans = [image.plan for image in prepared]
            encoded = []
            for plan, units in zip(plans, self.kept(plans, setting, kept), strict=True):
                policy = newline_policy(plan, sum(map(len, units)), manifest.pruning)
                assembly = assemble(plan, list(units), manifest.layout.prefix_tokens, policy)
                nothing = np.zeros((len(assembly.source), 1), np.float32)  # features, which nobody looks at
                encoded.append(EncodedImage(plan, nothing, assembly, units, None))
            sheet = draw_overlay(prepared, encoded, manifest)
        except FopruError as error:
            raise _gone(sample, error) from error
        return Overlay(_jpeg(sheet), sheet.width > 2 * sheet.height)

    def scores(self, sample: Sample) -> list[tuple[npt.NDArray[np.float32], ...]]:
        """The bundle's own token scores, float32 [N] per picture and unit: what the encoder looks at.

        Raises:
            RunError: a picture cannot be opened any more, or the backend failed.
        """
        try:
            prepared = self._generator.preprocess([open_picture(image) for image in sample.images])
            everything = tuple(tuple(unit.prunable for unit in image.plan.units) for image in prepared)
            # `rank` computes scores even where nothing is pruned.
            encoded = self._generator.encode_images(prepared, Selection(everything, "rank"))
        except FopruError as error:
            raise _gone(sample, error) from error
        return [image.scores or () for image in encoded]

    @cached_property
    def _bundle(self) -> Bundle:
        return load_bundle(self._path, verify=False)  # the measurement has verified it

    @cached_property
    def _generator(self) -> Generator:
        from runtime.generator import Generator

        return Generator(self._bundle, self._backend, self._threads)


def _request(setting: Setting, selector: str) -> Request:
    return Request("", ratio=None if selector == "none" else setting.ratio, selector=selector)


def _by_unit(plan: ImagePlan, kept: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
    """Positions counted through all units to positions of each unit."""
    starts = np.cumsum([0, *(unit.tokens for unit in plan.units)])
    return tuple(kept[(kept >= start) & (kept < end)] - start for start, end in pairwise(starts))


def _size(image: Path | bytes) -> tuple[int, int]:
    """(height, width) of the upright picture, without decoding it."""
    source = io.BytesIO(image) if isinstance(image, bytes) else image
    pil = require("PIL.Image", "pillow", "calib")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pil.DecompressionBombWarning)  # nothing is decoded
            with pil.open(source) as opened:
                width, height = opened.size
                turned = opened.getexif().get(_ORIENTATION, 1) >= _TURNED
    # Pillow reports damage as any of these.
    except (OSError, SyntaxError, ValueError, RuntimeError, pil.DecompressionBombError) as error:
        raise ImageError(f"a picture cannot be read ({error}): put it back") from error
    return (width, height) if turned else (height, width)


def _jpeg(sheet: Any) -> bytes:
    width = max(1, round(sheet.width * _HEIGHT / sheet.height))
    small = sheet.resize(
        (width, _HEIGHT), resample=require("PIL.Image", "pillow", "calib").Resampling.LANCZOS
    )
    stream = io.BytesIO()
    # Colour at full resolution: the outline of kept patches is thin and bright.
    small.save(stream, format="JPEG", quality=_QUALITY, subsampling=0)
    return stream.getvalue()


def _gone(sample: Sample, error: Exception) -> RunError:
    return RunError(f"no picture of {sample.name} can be shown ({error}): the figures are not affected")
