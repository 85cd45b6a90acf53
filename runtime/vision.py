"""Pixel values to visual tokens: the pruned encoder, the unpruned one, and selection on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime import contract
from runtime.backend import Array, Session
from runtime.errors import BackendError, RequestError
from runtime.manifest import Manifest
from runtime.selectors import GRAPH, Choice, allowed_selectors, needs_scores, select

__all__ = ["EncodedImages", "Selection", "VisionEncoder"]


@dataclass(frozen=True)
class Selection:
    """How to prune: K tokens per image, chosen by `selector`; `seed` is for "random"."""

    keep: int
    selector: str = GRAPH
    seed: int = 0

    def __post_init__(self) -> None:
        if self.selector not in allowed_selectors():
            raise RequestError(
                f'selector is "{self.selector}", expected one of {", ".join(allowed_selectors())}'
            )


@dataclass(frozen=True)
class EncodedImages:
    """Visual tokens ready for the prompt; may be reused for several questions about the same images.

    `features` float32 [images, p + K, D] (prefix rows first), `kept_indices` int64 [images, K] ascending in
    0..N-1, `token_scores` float32 [images, N] or None where no score was computed.
    """

    features: npt.NDArray[np.float32]
    kept_indices: npt.NDArray[np.int64]
    token_scores: npt.NDArray[np.float32] | None

    def joined(self, other: EncodedImages) -> EncodedImages:
        """These images followed by `other`'s, which must have the same K; scores only if both have them."""
        scores = None
        if self.token_scores is not None and other.token_scores is not None:
            scores = np.concatenate([self.token_scores, other.token_scores])
        return EncodedImages(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.kept_indices, other.kept_indices]),
            scores,
        )


class VisionEncoder:
    """Runs the vision graphs, each opened when first needed: a device that always prunes loads one."""

    def __init__(self, session: Callable[[str], Session], manifest: Manifest) -> None:
        """Take a function that opens a graph by its contract name."""
        self._session = session
        self._vision = manifest.vision
        self._strategy = manifest.pruning.strategy

    def graph_for(self, selection: Selection) -> str:
        """The graph that `encode` runs for a selection."""
        if selection.selector == GRAPH or needs_scores(selection.selector):
            return contract.VISION_ENCODER_FOPRU
        return contract.VISION_ENCODER

    def encode_unpruned(self, pixel_values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """All visual tokens [images, p + N, D] of pixel values [images, 3, H, W]."""
        outputs = self._session(contract.VISION_ENCODER).run({contract.PIXEL_VALUES: pixel_values})
        return outputs[contract.IMAGE_FEATURES]

    def encode(self, pixel_values: npt.NDArray[np.float32], selection: Selection) -> EncodedImages:
        """The visual tokens that a selection keeps.

        Raises:
            RequestError: K outside 1..N, not whole rows for `row`, or a selector that needs a grid.
            BackendError: the graph failed, or gave a score that is not finite.
        """
        total = self._vision.tokens
        if not 1 <= selection.keep <= total:
            raise RequestError(f"cannot keep {selection.keep} tokens: an image has {total}, give 1..{total}")
        if selection.selector == GRAPH:
            return self._pruned_by_graph(pixel_values, selection.keep)
        if needs_scores(selection.selector):
            whole = self._pruned_by_graph(pixel_values, total)
            features, scores = whole.features, whole.token_scores
        else:
            features, scores = self.encode_unpruned(pixel_values), None
        return self._pruned_by_host(features, scores, selection)

    def _pruned_by_graph(self, pixel_values: npt.NDArray[np.float32], keep: int) -> EncodedImages:
        grid = self._vision.grid
        if self._strategy == "row" and grid is not None and keep % grid[1]:
            raise RequestError(
                f'strategy "row" keeps whole rows of {grid[1]} tokens, not {keep}: give a multiple'
            )
        outputs = self._session(contract.VISION_ENCODER_FOPRU).run(
            {contract.PIXEL_VALUES: pixel_values, contract.NUM_KEEP: np.array([keep], np.int64)}
        )
        scores = outputs[contract.TOKEN_SCORES]
        if not np.isfinite(scores).all():
            raise BackendError(
                "the vision encoder gave a token score that is not finite: check image and bundle"
            )
        return EncodedImages(outputs[contract.IMAGE_FEATURES], outputs[contract.KEPT_INDICES], scores)

    def _pruned_by_host(self, features: Array, scores: Array | None, selection: Selection) -> EncodedImages:
        prefix, total = self._vision.prefix_tokens, self._vision.tokens
        blank = np.zeros(total, np.float32)
        kept = [
            # Another seed per image, so that "random" does not keep the same places of every image.
            select(
                selection.selector,
                Choice(
                    blank if scores is None else scores[image],
                    self._vision.grid,
                    selection.keep,
                    selection.seed + image,
                ),
            )
            for image in range(features.shape[0])
        ]
        rows = [np.concatenate([np.arange(prefix), prefix + indices]) for indices in kept]
        chosen = np.stack([features[image, picked] for image, picked in enumerate(rows)])
        return EncodedImages(chosen, np.stack(kept), scores)
