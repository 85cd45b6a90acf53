"""Which shapes engines are built for: profiles of every graph, from the manifest and a few limits.

An engine takes every shape between `minimum` and `maximum` and is fastest at `optimum`. Its scratch memory is
sized for `maximum`, so the limits are what a device pays for: the KV cache and the decoder's attention are
sized to the *kept* tokens, and `max_ratio` 0.3 makes them smaller.

Inputs whose content sizes other tensors (`num_keep`, `grid`, `num_logits_to_keep`) are shape tensors: their
profile holds values, not dims.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime import contract
from runtime.counts import kept_count, kept_rows
from runtime.decode import decode, encode
from runtime.decoder import PREFILL_ROWS
from runtime.errors import BundleError, EngineError, RequestError
from runtime.kv_cache import BLOCK_ROWS
from runtime.manifest import Manifest
from runtime.plan import Amount
from runtime.tensorrt.visual import Visual, usual_amount, visual_of

__all__ = [
    "BUILDER_LEVEL",
    "LEAST_RATIO",
    "MOST_KEPT",
    "UNITS_PER_CALL",
    "EnginePlan",
    "GraphPlan",
    "InputProfile",
    "Limits",
    "plan_engines",
]

MOST_KEPT = 3839
"""Greatest K of a TopK: TensorRT's parser documents "less than 3840", and a K from an input is not checked
when an engine is built."""

UNITS_PER_CALL = 8
"""Units that `runtime.vision` hands to the encoder at once: more make activations larger, not work faster."""

BUILDER_LEVEL = 3
"""Optimisation level of the builder; 3 is TensorRT's own default, higher ones time more tactics."""

LEAST_RATIO = 0.05
"""Least of `Limits.max_ratio`; requests may keep less, down to one token, which every profile takes."""


@dataclass(frozen=True)
class Limits:
    """What requests may ask of the engines.

    Attributes:
        max_images: images of a prompt.
        max_prompt: text tokens of a prompt, earlier turns included.
        max_new_tokens: tokens of an answer.
        ratio: fraction kept that engines are tuned for; None: the bundle's own default.
        max_ratio: greatest fraction kept.
        max_image_tokens: N of the largest image where a model takes images in their own size.
        unpruned: whether the encoder without pruning is built, too.
    """

    max_images: int = 4
    max_prompt: int = 512
    max_new_tokens: int = 256
    ratio: float | None = None
    max_ratio: float = 1.0
    max_image_tokens: int = 1280  # what the model card of Qwen2.5-VL suggests as its upper end
    unpruned: bool = False

    def __post_init__(self) -> None:
        for name in ("max_images", "max_prompt", "max_new_tokens", "max_image_tokens"):
            if getattr(self, name) < 1:
                raise EngineError(f"{name} is {getattr(self, name)}, expected a number from 1 on: give more")
        if not LEAST_RATIO <= self.max_ratio <= 1.0:
            raise EngineError(
                f"max_ratio is {self.max_ratio}, expected the greatest fraction kept, {LEAST_RATIO}..1: "
                "leave it out for 1"
            )
        if self.ratio is not None and not 0.0 < self.ratio <= self.max_ratio:
            raise EngineError(
                f"ratio is {self.ratio}, expected a fraction kept in (0, {self.max_ratio}]: give that, or a "
                "greater max_ratio"
            )


@dataclass(frozen=True)
class InputProfile:
    """Least, usual and greatest dims of one input; its content where `values`. A scalar's content is one
    number."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]
    values: bool = False

    def __post_init__(self) -> None:
        points = (self.minimum, self.optimum, self.maximum)
        rising = all(0 <= low <= usual <= high for low, usual, high in zip(*points, strict=False))
        if len({len(point) for point in points}) != 1 or not rising:
            raise EngineError(
                f"profile is {points[0]}, {points[1]}, {points[2]}, but minimum <= optimum <= maximum holds "
                "in every place: give larger limits"
            )

    @property
    def points(self) -> tuple[tuple[int, ...], ...]:
        """The three, in this order."""
        return self.minimum, self.optimum, self.maximum


@dataclass(frozen=True)
class GraphPlan:
    """One engine: the ONNX file inside the bundle, and the profiles by input name, in the graph's order."""

    graph: str
    file: str
    precision: str
    profiles: tuple[dict[str, InputProfile], ...]
    profile_names: tuple[str, ...] = ("all",)


@dataclass(frozen=True)
class EnginePlan:
    """What is built for a bundle.

    Attributes:
        limits: as asked, the ratio filled in where the bundle gives one.
        visual: sizes of one image.
        capacity: rows of the longest prompt with its answer.
        workspace: bytes of scratch memory that the builder may use.
        level: optimisation level of the builder.
        graphs: in the order in which they are built.
    """

    limits: Limits
    visual: Visual
    capacity: int
    workspace: int
    level: int
    graphs: tuple[GraphPlan, ...]

    @property
    def cache_rows(self) -> int:
        """Rows of the buffers of the KV cache, which come in whole blocks."""
        return _whole_blocks(self.capacity)

    @property
    def prompt_rows(self) -> int:
        """Rows of the longest prompt, images included."""
        return max(1, min(self.capacity, self._asked_rows))

    @property
    def _asked_rows(self) -> int:
        return self.limits.max_images * self.visual.most_rows + self.limits.max_prompt

    def graph(self, name: str) -> GraphPlan:
        """The plan of a graph.

        Raises:
            EngineError: it is not built.
        """
        for found in self.graphs:
            if found.graph == name:
                return found
        raise EngineError(
            f"the plan has no {name}, only {', '.join(each.graph for each in self.graphs)}: plan it again"
            + (" with --unpruned" if name == contract.VISION_ENCODER else "")
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        plain: dict[str, Any] = encode(self)
        return plain

    @classmethod
    def from_dict(cls, data: object, where: str) -> EnginePlan:
        """The inverse of `to_dict`; `where` names the file, for messages.

        Raises:
            EngineError: something else, or a plan of another version of this runtime.
        """
        try:
            plan: EnginePlan = decode(cls, json.loads(json.dumps(data)), where)
        except BundleError as error:
            what = str(error).rpartition(": ")[0]
            raise EngineError(f"{what}: build the engines again with `python -m runtime.engine`") from error
        return plan


def plan_engines(manifest: Manifest, limits: Limits, workspace: int) -> EnginePlan:
    """Profiles of every graph that a device needs.

    Args:
        manifest: of the bundle.
        limits: what requests may ask for.
        workspace: bytes of scratch memory of the builder.

    Raises:
        EngineError: no decoder that TensorRT can run, or limits that cannot be met.
    """
    if contract.APPEND not in manifest.decoder.caches.values():
        raise EngineError(
            f"the bundle's decoders grow their cache as {', '.join(manifest.decoder.caches.values())}, but "
            f'TensorRT needs "{contract.APPEND}": rebuild the bundle with `python -m export.build`'
        )
    try:
        usual = usual_amount(manifest.pruning, limits.ratio)
        if usual.ratio is not None and usual.ratio > limits.max_ratio:
            usual = Amount(ratio=limits.max_ratio)
        visual = visual_of(manifest, usual, limits.max_ratio, limits.max_image_tokens)
    except RequestError as error:
        raise EngineError(str(error)) from error
    asked = limits.max_images * visual.most_rows + limits.max_prompt + limits.max_new_tokens
    # Every row has a position of its own but with M-RoPE, where the rows of an image share them.
    bound = manifest.decoder.max_positions if manifest.decoder.position_axes == 1 else asked
    capacity = min(asked, bound)
    if capacity < 2:
        raise EngineError(f"the KV cache would have {capacity} rows, expected 2 or more: give larger limits")
    planner = _Planner(manifest, limits, visual, usual, capacity)
    names = [contract.VISION_ENCODER_FOPRU]
    names += [contract.VISION_ENCODER] if limits.unpruned else []
    names += [contract.EMBED_TOKENS, _portable(manifest)]
    graphs = tuple(planner.graph(name) for name in names)
    return EnginePlan(limits, visual, capacity, workspace, BUILDER_LEVEL, graphs)


def _whole_blocks(rows: int) -> int:
    return -(-rows // BLOCK_ROWS) * BLOCK_ROWS


def _portable(manifest: Manifest) -> str:
    return next(graph for graph, kind in manifest.decoder.caches.items() if kind == contract.APPEND)


@dataclass(frozen=True)
class _Planner:
    manifest: Manifest
    limits: Limits
    visual: Visual
    usual: Amount
    capacity: int

    def graph(self, name: str) -> GraphPlan:
        info = self.manifest.graphs[name]
        if name == contract.EMBED_TOKENS:
            named: dict[str, Mapping[str, tuple[int, int, int]]] = {"all": self._embed()}
        elif name in (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU):
            named = {"all": self._vision()}
        else:
            named = {"prefill": self._prefill(), "decode": self._decode()}
        content = self._content() if name != contract.EMBED_TOKENS else {}
        profiles = tuple(_profile(info.inputs, sizes, content) for sizes in named.values())
        return GraphPlan(name, info.file, info.precision, profiles, tuple(named))

    def _vision(self) -> dict[str, tuple[int, int, int]]:
        """Sizes by the name of a dim."""
        visual, images = self.visual, self.limits.max_images
        units = (1, min(visual.units, UNITS_PER_CALL), min(images * visual.most_units, UNITS_PER_CALL))
        least = visual.tokens if self.manifest.layout.unit_tokens is not None else 1
        return {
            "images": units,
            "units": units,
            "tokens": (least, visual.tokens, visual.most_tokens),
            "windows": (1, max(1, visual.windows), max(1, visual.most_windows)),
        }

    def _embed(self) -> dict[str, tuple[int, int, int]]:
        # The host looks up placeholders as well and puts the images' rows over them.
        longest = self._longest_prompt
        return {"batch": (1, 1, 1), "seq": (1, min(self._usual_prompt, longest), longest)}

    def _prefill(self) -> dict[str, tuple[int, int, int]]:
        """Chunks of a prompt. The first one has no past: an empty tensor, which TensorRT takes as an input
        ("empty tensors" in its developer guide: a dim of 0 is legal, and such a tensor needs an address all
        the same). TensorRT for RTX 1.7.1 parses and builds our decoder with a minimum of 0; not yet run on
        10.3. `total` is past + new at each of the three points, as the builder checks it there."""
        rows = min(PREFILL_ROWS, self._longest_prompt)
        usual = min(rows, self._usual_prompt)
        past = _whole_blocks(self.capacity)
        return {
            "batch": (1, 1, 1),
            "seq": (1, usual, rows),
            "past": (0, 0, past),
            "total": (1, usual, past + rows),
        }

    def _decode(self) -> dict[str, tuple[int, int, int]]:
        last = _whole_blocks(self.capacity)  # a recorded step binds a past that is padded to so many
        usual = min(self.capacity - 1, self._usual_prompt + self.limits.max_new_tokens // 2)
        return {
            "batch": (1, 1, 1),
            "seq": (1, 1, 1),
            "past": (1, usual, last),
            "total": (2, usual + 1, last + 1),
        }

    def _content(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Values of shape tensors at the three points."""
        visual, grid = self.visual, self._grid()
        most = min(MOST_KEPT // visual.columns * visual.columns, self._kept(visual.most_tokens))
        if most < visual.columns:
            raise EngineError(
                f"a grid row has {visual.columns} tokens, but TensorRT's TopK takes {MOST_KEPT} at most: "
                'build the bundle with strategy "rank"'
            )
        usual = max(visual.columns, min(self._usual_kept(), most))
        return {
            contract.NUM_KEEP: ((visual.columns,), (usual,), (most,)),
            contract.GRID: grid,
            # One row of logits is all that an answer needs; it keeps [seq, vocabulary] out of the memory.
            contract.NUM_LOGITS_TO_KEEP: ((1,), (1,), (1,)),
        }

    def _grid(self) -> tuple[tuple[int, ...], ...]:
        """Rows and columns: of one token, of the usual picture, and as many as either may be."""
        rows = max(1, round(self.visual.tokens**0.5))
        most = max(rows, self.visual.tokens // rows, self.visual.most_tokens)
        return (1, 1), (rows, max(1, self.visual.tokens // rows)), (most, most)

    def _kept(self, tokens: int) -> int:
        if self.manifest.pruning.row_scope == "stitched":  # the host compares all rows of all tiles
            return tokens
        return self._at_ratio(tokens, self.limits.max_ratio)

    def _usual_kept(self) -> int:
        if self.manifest.pruning.row_scope == "stitched":
            return self.visual.tokens
        if self.usual.ratio is not None:
            return self._at_ratio(self.visual.tokens, self.usual.ratio)
        share = (self.usual.tokens or 1) // self.visual.units
        return max(1, min(share, self.visual.tokens)) // self.visual.columns * self.visual.columns

    def _at_ratio(self, tokens: int, ratio: float) -> int:
        columns = self.visual.columns
        if columns > 1:
            return columns * kept_rows(tokens // columns, ratio)
        if self.manifest.grid_input and ratio < 1.0:  # whole rows of a picture of any shape
            return tokens
        return kept_count(tokens, ratio)

    @property
    def _longest_prompt(self) -> int:
        rows = self.limits.max_images * self.visual.most_rows + self.limits.max_prompt
        return min(rows, self.capacity)

    @property
    def _usual_prompt(self) -> int:
        """One usual image, and a quarter of the text there may be."""
        return min(self.visual.rows + max(1, self.limits.max_prompt // 4), self.capacity - 1)


def _profile(
    inputs: Iterable[contract.TensorSpec],
    sizes: Mapping[str, tuple[int, int, int]],
    content: Mapping[str, tuple[tuple[int, ...], ...]],
) -> dict[str, InputProfile]:
    """Profile of every input that varies or sizes others."""
    found = {}
    for tensor in inputs:
        if tensor.name in content:
            found[tensor.name] = _at_points(content[tensor.name], values=True)
        elif any(isinstance(dim, str) for dim in tensor.shape):
            points = [
                tuple(dim if isinstance(dim, int) else _size(tensor, dim, sizes)[at] for dim in tensor.shape)
                for at in range(3)
            ]
            found[tensor.name] = _at_points(points)
    return found


def _at_points(points: Sequence[tuple[int, ...]], *, values: bool = False) -> InputProfile:
    return InputProfile(points[0], points[1], points[2], values)


def _size(
    tensor: contract.TensorSpec, dim: str, sizes: Mapping[str, tuple[int, int, int]]
) -> tuple[int, ...]:
    if dim not in sizes:
        raise EngineError(
            f"input {tensor.name} has the dim {dim}, but sizes are known of {', '.join(sizes)} only: rebuild "
            "the bundle with an exporter of this version"
        )
    return sizes[dim]
