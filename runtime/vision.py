"""Prepared images to visual tokens: the pruned encoder, the unpruned one, and selection on the host."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from runtime import contract
from runtime.assemble import Assembly, assemble
from runtime.backend import Array, Session
from runtime.errors import BackendError, RequestError
from runtime.image_digest import image_digest
from runtime.layouts import ImagePlan, Unit
from runtime.layouts.stitch import stitched_grid, stitched_rows_kept
from runtime.manifest import Manifest
from runtime.plan import newline_policy, stitched_rows
from runtime.preprocess import PreparedImage
from runtime.rows import HostSpace, Output, Part, Rows, Space
from runtime.selectors import GRAPH, Choice, allowed_selectors, needs_scores, select

__all__ = ["MOST_UNITS", "EncodedImage", "Selection", "VisionEncoder"]

MOST_UNITS = 8  # in one call: more make the activations larger, not the work faster


@dataclass(frozen=True)
class Selection:
    """How to prune: `counts` per image and unit, chosen by `selector`; `seed` is for "random"."""

    counts: tuple[tuple[int, ...], ...]
    selector: str = GRAPH
    seed: int = 0

    def __post_init__(self) -> None:
        if self.selector not in allowed_selectors():
            raise RequestError(
                f'selector is "{self.selector}", expected one of {", ".join(allowed_selectors())}'
            )


@dataclass(frozen=True)
class EncodedImage:
    """The visual tokens of one image, ready for the prompt; may be reused for several questions about it.

    `features` float32 [rows, D] as they go into the prompt, where the encoder left them, `kept` int64
    positions per unit, ascending in 0..N-1, `scores` float32 [N] per unit, or None where no score was
    computed.
    """

    plan: ImagePlan
    features: Rows
    assembly: Assembly
    kept: tuple[npt.NDArray[np.int64], ...]
    scores: tuple[npt.NDArray[np.float32], ...] | None

    @property
    def kept_indices(self) -> npt.NDArray[np.int64]:
        """Kept positions int64 [K], ascending; tokens are counted through all units."""
        starts = np.cumsum([0, *(unit.tokens for unit in self.plan.units)])
        return np.concatenate([start + kept for start, kept in zip(starts[:-1], self.kept, strict=True)])

    @property
    def counts(self) -> tuple[int, ...]:
        """Kept tokens per unit."""
        return tuple(len(kept) for kept in self.kept)


@dataclass(frozen=True)
class _Job:
    """One unit to encode: where it belongs, its pixels, and K of the graph (None: the unpruned encoder)."""

    image: int
    unit: int
    prepared: PreparedImage
    keep: int | None

    @property
    def shape(self) -> Unit:
        return self.prepared.plan.units[self.unit]

    @property
    def pixels(self) -> Array:
        return self.prepared.pixel_values[self.unit : self.unit + 1]


_Outputs = dict[str, Rows]


@dataclass(frozen=True)
class _Found:
    """What a graph gave, by image and unit: which rows of its output go on, kept positions, scores."""

    graph: str
    features: Sequence[Sequence[Part]]
    kept: Sequence[Sequence[Array]]
    scores: Sequence[Sequence[Array]] | None


class VisionEncoder:
    """Runs the vision graphs, each opened when first needed: a device that always prunes loads one."""

    def __init__(
        self,
        session: Callable[[str], Session],
        manifest: Manifest,
        newline: npt.NDArray[np.float32] | None = None,
        space: Space | None = None,
    ) -> None:
        """Take a function that opens a graph by its contract name, the newline vector [D], if any, and where
        visual tokens are kept (None: in numpy)."""
        self._session = session
        self._manifest = manifest
        self._prefix = manifest.layout.prefix_tokens
        self._space: Space = space or HostSpace()
        self._newline = None if newline is None else self._space.rows(newline[None])

    def graph_for(self, selection: Selection) -> str:
        """The graph that `encode` runs for a selection."""
        if selection.selector == GRAPH or needs_scores(selection.selector):
            return contract.VISION_ENCODER_FOPRU
        return contract.VISION_ENCODER

    def encode_unpruned(self, images: Sequence[PreparedImage]) -> tuple[EncodedImage, ...]:
        """All visual tokens of every image, newlines included."""
        everything = [[unit.valid_indices for unit in image.plan.units] for image in images]
        features = self._whole(images, contract.VISION_ENCODER)[0]
        found = _Found(contract.VISION_ENCODER, self._cut(features, everything), everything, None)
        return self._joined(images, found)

    def encode(self, images: Sequence[PreparedImage], selection: Selection) -> tuple[EncodedImage, ...]:
        """The visual tokens that a selection keeps.

        Raises:
            RequestError: a count outside 1..N, not whole rows for `row`, or a selector that needs a grid.
            BackendError: the graph failed, or gave a score that is not finite.
        """
        if len(selection.counts) != len(images):
            raise RequestError(
                f"got counts for {len(selection.counts)} images, but there are {len(images)}: "
                "make them with plan_pruning"
            )
        stitched = stitched_rows(selection.selector, self._manifest.pruning)
        for image, counts in zip(images, selection.counts, strict=True):
            if stitched and image.plan.mosaic is not None:
                _check_stitched(image.plan, counts)
            else:
                _check_counts(image.plan, counts)
        if selection.selector == GRAPH and not stitched:
            return self._pruned_by_graph(images, selection)
        return self._pruned_by_host(images, selection, stitched)

    def _pruned_by_graph(
        self, images: Sequence[PreparedImage], selection: Selection
    ) -> tuple[EncodedImage, ...]:
        jobs = [
            _Job(number, unit, image, self._graph_keep(image.plan.units[unit], count))
            for number, (image, counts) in enumerate(zip(images, selection.counts, strict=True))
            for unit, count in enumerate(counts)
            if count
        ]
        found = self._run(jobs, contract.VISION_ENCODER_FOPRU)
        features = self._padding(images)
        kept, scores = _empty(images), _empty(images)
        for job in jobs:
            out, unit = found[job.image, job.unit], job.shape
            _check_scores(out[contract.TOKEN_SCORES])
            indices: npt.NDArray[np.int64] = out[contract.KEPT_INDICES]
            shown = np.isin(indices, unit.valid_indices)
            # Whole rows of a tile may have padding at its sides.
            wanted = None if shown.all() else self._after_prefix(np.flatnonzero(shown))
            features[job.image][job.unit] = out[contract.IMAGE_FEATURES], wanted
            kept[job.image][job.unit] = indices[shown]
            scores[job.image][job.unit] = out[contract.TOKEN_SCORES]
        for number, image in enumerate(images):
            for index, unit in enumerate(image.plan.units):
                if not unit.prunable:
                    kept[number][index] = unit.valid_indices
                    scores[number][index] = np.zeros(unit.tokens, np.float32)
        return self._joined(images, _Found(contract.VISION_ENCODER_FOPRU, features, kept, scores))

    def _pruned_by_host(
        self, images: Sequence[PreparedImage], selection: Selection, stitched: bool
    ) -> tuple[EncodedImage, ...]:
        graph = self.graph_for(selection)
        features, scores = self._whole(images, graph)
        kept, seed = [], selection.seed
        for number, (image, counts) in enumerate(zip(images, selection.counts, strict=True)):
            plan, own = image.plan, scores[number]
            if stitched and plan.mosaic is not None and plan.overview is not None:
                rows = stitched_rows_kept(plan, own, counts[1])
                overview = plan.units[plan.overview]
                rows[plan.overview] = _select(overview, Choice(own[plan.overview], None, counts[0]), "row")
                kept.append(rows)
                continue
            name = "row" if selection.selector == GRAPH else selection.selector
            parts = []
            for unit, values, count in zip(plan.units, own, counts, strict=True):
                # Another seed per unit, so that "random" does not keep the same places of every one.
                parts.append(_select(unit, Choice(values, None, count, seed), name))
                seed += 1
            kept.append(parts)
        given = scores if graph == contract.VISION_ENCODER_FOPRU else None
        return self._joined(images, _Found(graph, self._cut(features, kept), kept, given))

    def _whole(
        self, images: Sequence[PreparedImage], graph: str
    ) -> tuple[list[list[Part]], list[list[Array]]]:
        """(features [p + N, D], scores [N] or zeros) of every unit with nothing pruned."""
        pruned = graph == contract.VISION_ENCODER_FOPRU
        jobs = [
            _Job(number, index, image, unit.tokens if pruned else None)
            for number, image in enumerate(images)
            for index, unit in enumerate(image.plan.units)
            if unit.prunable
        ]
        found = self._run(jobs, graph)
        features = self._padding(images)
        scores = [[np.zeros(unit.tokens, np.float32) for unit in image.plan.units] for image in images]
        for job in jobs:
            out = found[job.image, job.unit]
            features[job.image][job.unit] = out[contract.IMAGE_FEATURES], None
            if contract.TOKEN_SCORES in out:
                own = out[contract.TOKEN_SCORES]
                _check_scores(own)
                scores[job.image][job.unit] = own
        return features, scores

    def _padding(self, images: Sequence[PreparedImage]) -> list[list[Part]]:
        """What is there of units that are padding alone, which are not encoded: no token of theirs is ever
        looked at. The others' places are to be filled."""
        nothing = np.zeros((self._prefix, self._manifest.decoder.hidden_size), np.float32)
        return [[(nothing, None) for _ in image.plan.units] for image in images]

    def _after_prefix(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows of a unit: the prefix, and tokens behind it."""
        return np.concatenate([np.arange(self._prefix), self._prefix + indices])

    def _run(self, jobs: Sequence[_Job], graph: str) -> dict[tuple[int, int], _Outputs]:
        """Outputs of every job without the axis of units; jobs of equal shape and K share a call."""
        results: dict[tuple[int, int], _Outputs] = {}
        if not jobs:
            return results
        session = self._session(graph)
        batches = list(_batches(jobs))
        started = [
            self._space.run(session, self._feeds(batch, graph), self._outputs(batch, graph))
            for batch in batches
        ]
        for batch, finish in zip(batches, started, strict=True):
            outputs = finish()
            for place, job in enumerate(batch):
                results[job.image, job.unit] = {name: value[place] for name, value in outputs.items()}
        return results

    def _outputs(self, batch: Sequence[_Job], graph: str) -> dict[str, Output]:
        """Sizes of what the graph gives for a batch."""
        units, first = len(batch), batch[0]
        tokens = first.shape.tokens
        keep = tokens if first.keep is None else first.keep
        sizes = {
            contract.IMAGE_FEATURES: (units, self._prefix + keep, self._manifest.decoder.hidden_size),
            contract.KEPT_INDICES: (units, keep),
            contract.TOKEN_SCORES: (units, tokens),
        }
        return {
            tensor.name: Output(sizes[tensor.name], tensor.dtype, tensor.name == contract.IMAGE_FEATURES)
            for tensor in self._manifest.graphs[graph].outputs
            if tensor.name in sizes
        }

    def _feeds(self, batch: Sequence[_Job], graph: str) -> dict[str, Array]:
        first = batch[0]
        feeds: dict[str, Array] = {
            contract.PIXEL_VALUES: np.concatenate([job.pixels for job in batch]),
            **first.prepared.plan.inputs,
        }
        if graph == contract.VISION_ENCODER_FOPRU:
            feeds[contract.NUM_KEEP] = np.array([first.keep], np.int64)
            if self._manifest.layout.masked:
                feeds[contract.TOKEN_MASK] = np.stack([_mask(job) for job in batch])
            if self._manifest.grid_input:
                feeds[contract.GRID] = np.array(first.shape.grid, np.int64)
        return feeds

    def _graph_keep(self, unit: Unit, count: int) -> int:
        """K as the graph counts: whole rows of the grid for `row`, padding at their ends included."""
        if self._manifest.pruning.strategy != "row" or unit.grid is None or unit.valid_grid is None:
            return count
        columns = unit.valid_grid[1]
        if count % columns:
            raise RequestError(
                f'strategy "row" keeps whole rows of {columns} tokens, not {count}: give a multiple'
            )
        return count // columns * unit.grid[1]

    def _joined(self, images: Sequence[PreparedImage], found: _Found) -> tuple[EncodedImage, ...]:
        encoded = []
        for number, image in enumerate(images):
            kept = found.kept[number]
            policy = newline_policy(image.plan, sum(map(len, kept)), self._manifest.pruning)
            assembly = assemble(image.plan, kept, self._prefix, policy)
            parts = list(found.features[number])
            if self._newline is not None:
                parts.append((self._newline, None))  # NEWLINE is the last row
            digest = partial(_digest, image, found.graph, kept, assembly)
            encoded.append(
                EncodedImage(
                    image.plan,
                    self._space.gather(parts, assembly.source, digest),
                    assembly,
                    tuple(kept),
                    None if found.scores is None else tuple(found.scores[number]),
                )
            )
        return tuple(encoded)

    def _cut(self, features: Sequence[Sequence[Part]], kept: Sequence[Sequence[Array]]) -> list[list[Part]]:
        """The prefix rows and kept rows of whole outputs [p + N, D]."""
        return [
            [(rows, self._after_prefix(indices)) for (rows, _), indices in zip(own, chosen, strict=True)]
            for own, chosen in zip(features, kept, strict=True)
        ]


def _digest(image: PreparedImage, graph: str, kept: Sequence[Array], assembly: Assembly) -> bytes:
    """What an image's visual tokens are made of, within one bundle."""
    digest = hashlib.sha256(image_digest(image) + graph.encode())
    for array in (*kept, assembly.source):
        digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).data)
    return digest.digest()


def _batches(jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
    groups: dict[object, list[_Job]] = {}
    for job in jobs:
        own = job.image if job.prepared.plan.inputs else None
        groups.setdefault((own, job.keep, job.pixels.shape), []).append(job)
    for group in groups.values():
        for start in range(0, len(group), MOST_UNITS):
            yield group[start : start + MOST_UNITS]


def _mask(job: _Job) -> npt.NDArray[np.bool_]:
    mask = np.zeros(job.shape.tokens, np.bool_)
    mask[job.shape.valid_indices] = True
    return mask


def _select(unit: Unit, choice: Choice, name: str) -> npt.NDArray[np.int64]:
    """Run a host selector on the valid tokens of a unit; `choice` has the scores of all of them."""
    valid = unit.valid_indices
    if not valid.size:
        return valid
    chosen = select(name, Choice(choice.scores[valid], unit.valid_grid, choice.keep, choice.seed))
    return valid[chosen]


def _empty(images: Sequence[PreparedImage]) -> list[list[Array]]:
    nothing: list[list[Array]] = [[None] * len(image.plan.units) for image in images]  # type: ignore[list-item]  # filled by unit
    return nothing


def _check_counts(plan: ImagePlan, counts: Sequence[int]) -> None:
    if len(counts) != len(plan.units):
        raise RequestError(
            f"got {len(counts)} counts for an image that is seen in {len(plan.units)} parts: "
            "make them with plan_pruning"
        )
    for unit, count in zip(plan.units, counts, strict=True):
        total = unit.prunable
        if count == total == 0:
            continue
        if not 1 <= count <= total:
            what = "an image" if len(counts) == 1 else "this part of the image"
            raise RequestError(f"cannot keep {count} tokens: {what} has {total}, give 1..{total}")


def _check_stitched(plan: ImagePlan, counts: Sequence[int]) -> None:
    """The overview's own count is checked where its rows are chosen."""
    if len(counts) != 2:
        raise RequestError(
            f"got {len(counts)} counts for an image of which rows of all tiles are compared, expected 2 "
            "(the overview's, and all tiles' together): make them with plan_pruning"
        )
    rows, columns = stitched_grid(plan)
    total = rows * columns
    if counts[1] != total and (not 1 <= counts[1] <= total or counts[1] % columns):
        raise RequestError(
            f"cannot keep {counts[1]} tokens of the tiles: give whole rows of {columns}, up to {total}"
        )


def _check_scores(scores: Array) -> None:
    if not np.isfinite(scores).all():
        raise BackendError("the vision encoder gave a token score that is not finite: check image and bundle")
