"""`bundle.json` as frozen dataclasses: what a bundle is, field by field (docs/bundle_format.md is its prose).

The exporter builds a `Manifest` and writes `to_json()`; the runtime reads it with `Manifest.from_json`. Both
directions go through the same classes, so a manifest that was written can be read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from runtime import contract
from runtime.contract import TensorSpec
from runtime.decode import decode, encode
from runtime.errors import BundleError

__all__ = [
    "AGGREGATIONS",
    "FORMAT_VERSION",
    "GATHERS",
    "GRAPHS",
    "SCORE_PATHS",
    "STRATEGIES",
    "DecoderInfo",
    "FileInfo",
    "GraphInfo",
    "Manifest",
    "ModelInfo",
    "Preprocess",
    "PromptTemplate",
    "PruningInfo",
    "SpecialTokens",
    "VisionInfo",
]

FORMAT_VERSION = 1
STRATEGIES = ("rank", "row")
AGGREGATIONS = ("col_mean", "col_mean_patch", "cls")
SCORE_PATHS = ("one_pass", "side_branch", "cls_row", "chunked")
GATHERS = ("early", "late")
GRAPHS = (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU, contract.EMBED_TOKENS, contract.DECODER)

_REBUILD = "rebuild the bundle with `python -m export.build`"


@dataclass(frozen=True)
class ModelInfo:
    """Where the model comes from; for people and logs, nothing branches on it."""

    name: str
    source: str
    family: str
    architecture: str


@dataclass(frozen=True)
class PromptTemplate:
    """How text and images become the model's prompt.

    `first_turn` holds `{images}` and `{prompt}` once each; `next_turn` is the same, appended after the
    previous answer (None: the model has no chat form). `image` stands for one image and holds the image token
    once. `generation` is the end of every turn that opens the answer ("ASSISTANT:"); once the turn has been
    answered, `past_answer` ("ASSISTANT: {answer}") takes its place: chat templates write the two differently.
    """

    first_turn: str
    next_turn: str | None
    image: str
    add_special_tokens: bool
    generation: str = ""
    past_answer: str = "{answer}"

    def __post_init__(self) -> None:
        if self.past_answer.count("{answer}") != 1:
            raise BundleError(
                f"prompt.past_answer is {self.past_answer!r}, which must hold {{answer}} exactly once: "
                f"{_REBUILD}"
            )
        turns = {"first_turn": self.first_turn}
        if self.next_turn is not None:
            turns["next_turn"] = self.next_turn
        for turn in turns.values():
            if not turn.endswith(self.generation):
                raise BundleError(
                    f"prompt.generation is {self.generation!r}, which must end every turn, but one is "
                    f"{turn!r}: {_REBUILD}"
                )
        for name, turn in turns.items():
            for slot in ("{images}", "{prompt}"):
                if turn.count(slot) != 1:
                    raise BundleError(
                        f"prompt.{name} is {turn!r}, which must hold {slot} exactly once: change the chat "
                        "template and build the bundle again"
                    )


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids with a meaning: `image` is the placeholder, any id of `eos` ends the answer."""

    image: int
    eos: tuple[int, ...]
    pad: int | None
    bos: int | None

    def __post_init__(self) -> None:
        if self.image < 0:
            raise BundleError(f"tokens.image is {self.image}, expected a token id: {_REBUILD}")
        if not self.eos or min(self.eos) < 0:
            raise BundleError(f"tokens.eos is {list(self.eos)}, expected at least one token id: {_REBUILD}")


@dataclass(frozen=True)
class Preprocess:
    """The image processor as data, in the order applied: pad to square, resize, crop, rescale, normalise.

    `resize` is `{"shortest_edge": n}` or `{"height": h, "width": w}`; `crop` (centred) is
    `{"height": h, "width": w}` or None; `pad_to_square` is the fill colour (0..255) or None; `resample` is
    PIL's code (3 = bicubic).
    """

    resize: dict[str, int]
    resample: int
    crop: dict[str, int] | None
    pad_to_square: tuple[int, int, int] | None
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        forms = ({"shortest_edge"}, {"height", "width"})
        if set(self.resize) not in forms or min(self.resize.values()) < 1:
            raise BundleError(
                f'preprocess.resize is {self.resize}, expected {{"shortest_edge": n}} or '
                f'{{"height": h, "width": w}}: {_REBUILD}'
            )
        if self.crop is not None and (set(self.crop) != forms[1] or min(self.crop.values()) < 1):
            raise BundleError(
                f'preprocess.crop is {self.crop}, expected {{"height": h, "width": w}} or null: {_REBUILD}'
            )
        if self.crop is None and "shortest_edge" in self.resize:
            raise BundleError(
                "preprocess.resize keeps the aspect ratio, so preprocess.crop must say the final size: "
                f"{_REBUILD}"
            )
        if not 0 <= self.resample <= 5:
            raise BundleError(
                f"preprocess.resample is {self.resample}, expected PIL's code 0..5 (3 is bicubic): {_REBUILD}"
            )
        if 0.0 in self.std:
            raise BundleError(f"preprocess.std is {list(self.std)}, but no entry may be 0: {_REBUILD}")
        if (factor := self.rescale_factor) <= 0.0:
            raise BundleError(f"preprocess.rescale_factor is {factor}, expected more than 0: {_REBUILD}")

    @property
    def output_size(self) -> tuple[int, int]:
        """(H, W) of what the vision encoder sees."""
        final = self.crop if self.crop is not None else self.resize
        return final["height"], final["width"]


@dataclass(frozen=True)
class VisionInfo:
    """Shapes of the vision encoder.

    `tokens` is N, the prunable tokens per image, row-major over `grid` (None: no full grid).
    `prefix_tokens` rows (CLS) come first in `image_features`, are never pruned and not counted in N.
    """

    image_size: tuple[int, int]
    grid: tuple[int, int] | None
    tokens: int
    prefix_tokens: int

    def __post_init__(self) -> None:
        for name, size in (("image_size", self.image_size), ("grid", self.grid)):
            if size is not None and min(size) < 1:
                raise BundleError(f"vision.{name} is {list(size)}, expected numbers from 1 on: {_REBUILD}")
        if self.tokens < 1 or self.prefix_tokens < 0:
            raise BundleError(
                f"vision.tokens is {self.tokens} and vision.prefix_tokens {self.prefix_tokens}, "
                f"expected at least 1 and 0: {_REBUILD}"
            )
        if self.grid is not None and self.grid[0] * self.grid[1] != self.tokens:
            raise BundleError(
                f"vision.grid is {list(self.grid)}, which does not make vision.tokens {self.tokens}: "
                f"{_REBUILD}"
            )


@dataclass(frozen=True)
class PruningInfo:
    """What the pruned encoder graph does, and what a request gets that says nothing.

    At most one of `default_ratio` and `default_tokens` is set; with neither, such a request is not pruned.
    """

    strategy: str
    aggregation: str
    layer: int
    score_path: str
    gather: str
    position_ids: str
    default_ratio: float | None
    default_tokens: int | None

    def __post_init__(self) -> None:
        _one_of("pruning.strategy", self.strategy, STRATEGIES)
        _one_of("pruning.aggregation", self.aggregation, AGGREGATIONS)
        _one_of("pruning.score_path", self.score_path, SCORE_PATHS)
        _one_of("pruning.gather", self.gather, GATHERS)
        _one_of("pruning.position_ids", self.position_ids, ("renumber",))
        if self.default_ratio is not None and self.default_tokens is not None:
            raise BundleError(f"pruning has both default_ratio and default_tokens, drop one: {_REBUILD}")
        if self.default_ratio is not None and not 0.0 < self.default_ratio <= 1.0:
            raise BundleError(
                f"pruning.default_ratio is {self.default_ratio}, expected a number in (0, 1]: {_REBUILD}"
            )
        if self.default_tokens is not None and self.default_tokens < 1:
            raise BundleError(
                f"pruning.default_tokens is {self.default_tokens}, expected 1 or more: {_REBUILD}"
            )


@dataclass(frozen=True)
class DecoderInfo:
    """Shapes of the decoder and its KV cache; `max_positions` bounds prompt + answer."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_positions: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise BundleError(f"decoder.{name} is {value}, expected at least 1: {_REBUILD}")


@dataclass(frozen=True)
class GraphInfo:
    """One graph file with the tensors that cross its border, in order."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and lower-case hex SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The whole of `bundle.json`."""

    format_version: int
    created_by: dict[str, str | int]
    model: ModelInfo
    prompt: PromptTemplate
    tokens: SpecialTokens
    preprocess: Preprocess
    vision: VisionInfo
    pruning: PruningInfo
    decoder: DecoderInfo
    graphs: dict[str, GraphInfo]
    files: dict[str, FileInfo]
    parity: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if set(self.graphs) != set(GRAPHS):
            raise BundleError(f"graphs is {sorted(self.graphs)}, expected {sorted(GRAPHS)}: {_REBUILD}")
        for name in self.files:
            _check_inside(name)
        for graph, info in self.graphs.items():
            if info.file not in self.files:
                raise BundleError(
                    f'graphs.{graph}.file is "{info.file}", which files does not list: {_REBUILD}'
                )
        if self.preprocess.output_size != self.vision.image_size:
            raise BundleError(
                f"preprocess makes images of {self.preprocess.output_size}, but vision.image_size is "
                f"{self.vision.image_size}: {_REBUILD}"
            )
        if self.pruning.strategy == "row" and self.vision.grid is None:
            raise BundleError(
                f'pruning.strategy is "row", which needs vision.grid, but that is null: {_REBUILD}'
            )
        if self.pruning.default_tokens is not None and self.pruning.default_tokens > self.vision.tokens:
            raise BundleError(
                f"pruning.default_tokens is {self.pruning.default_tokens}, but an image has "
                f"{self.vision.tokens} tokens: {_REBUILD}"
            )

    @property
    def row_length(self) -> int | None:
        """Columns of the grid where whole rows are kept (strategy `row`), else None."""
        grid = self.vision.grid
        return grid[1] if grid is not None and self.pruning.strategy == "row" else None

    @classmethod
    def from_json(cls, source: str | dict[str, Any]) -> Manifest:
        """Read a manifest from JSON text or from the parsed object.

        Raises:
            BundleError: not JSON, a newer format, an unknown or missing key, a wrong type or value.
        """
        data = _parse(source) if isinstance(source, str) else source
        if not isinstance(data, dict):
            raise BundleError(f"bundle.json holds a {type(data).__name__}, expected an object: {_REBUILD}")
        # The version is looked at first: a newer format may have keys that mean nothing here.
        version = decode(int, data.get("format_version"), "bundle.json: format_version")
        if version > FORMAT_VERSION:
            raise BundleError(
                f"the bundle has format {version}, but this runtime reads up to {FORMAT_VERSION}: "
                "upgrade the runtime, or build the bundle with an exporter of this version"
            )
        if version < 1:
            raise BundleError(
                f"bundle.json: format_version is {version}, expected 1..{FORMAT_VERSION}: {_REBUILD}"
            )
        manifest: Manifest = decode(cls, data, "bundle.json")
        return manifest

    def to_json(self) -> str:
        """The text of `bundle.json`, ending in a newline; `from_json` gives an equal manifest back."""
        return json.dumps(encode(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"bundle.json is not JSON ({error}): {_REBUILD}") from error


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BundleError(f'{name} is "{value}", expected one of {", ".join(allowed)}: {_REBUILD}')


def _check_inside(name: str) -> None:
    """A listed path is relative, forward-slashed, and stays inside the bundle."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or path.as_posix() != name:
        raise BundleError(
            f'files lists "{name}", which is not a plain path inside the bundle: do not use it, or {_REBUILD}'
        )
