"""`bundle.json` as frozen dataclasses: what a bundle is, field by field (docs/bundle_format.md is its prose).

The exporter builds a `Manifest` and writes `to_json()`; the runtime reads it with `Manifest.from_json`. Both
directions go through the same classes, so a manifest that was written can be read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from runtime import contract
from runtime.contract import TensorSpec
from runtime.decode import decode, encode
from runtime.errors import BundleError
from runtime.layouts import ImageLayout
from runtime.upgrade import upgraded

__all__ = [
    "AGGREGATIONS",
    "CACHE_DTYPES",
    "DECODERS",
    "FORMAT_VERSION",
    "GATHERS",
    "GRAPHS",
    "IMAGE_NEWLINE",
    "NEWLINE_POLICIES",
    "POSITION_POLICIES",
    "PRECISIONS",
    "ROW_SCOPES",
    "SCORE_PATHS",
    "STRATEGIES",
    "ConstantInfo",
    "DecoderInfo",
    "FileInfo",
    "GraphInfo",
    "Manifest",
    "ModelInfo",
    "Preprocess",
    "PromptTemplate",
    "PruningInfo",
    "SpecialTokens",
]

FORMAT_VERSION = 3
STRATEGIES = ("rank", "row")
AGGREGATIONS = ("col_mean", "col_mean_patch", "cls")
SCORE_PATHS = ("one_pass", "side_branch", "cls_row", "chunked")
GATHERS = ("early", "late")
POSITION_POLICIES = ("renumber", "original")
ROW_SCOPES = ("tile", "stitched")
NEWLINE_POLICIES = ("keep_all", "keep_nonempty", "drop")
GRAPHS = (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU, contract.EMBED_TOKENS)
"""Graphs of every bundle; `DecoderInfo.caches` names the decoders."""
DECODERS = (contract.DECODER, contract.DECODER_PORTABLE)
CACHE_DTYPES = ("float32", "float16", "bfloat16")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4", "w8a8", "fp8")

IMAGE_NEWLINE = "image_newline"
"""Name of the newline vector [D] among the constants."""

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
    `first_text` and `next_text` are the turns without images where these are written differently (None: with
    nothing in place of `{images}`); they hold `{prompt}` alone.
    """

    first_turn: str
    next_turn: str | None
    image: str
    add_special_tokens: bool
    generation: str = ""
    past_answer: str = "{answer}"
    first_text: str | None = None
    next_text: str | None = None

    def __post_init__(self) -> None:
        if self.past_answer.count("{answer}") != 1:
            raise BundleError(
                f"prompt.past_answer is {self.past_answer!r}, which must hold {{answer}} exactly once: "
                f"{_REBUILD}"
            )
        turns = {"first_turn": self.first_turn}
        if self.next_turn is not None:
            turns["next_turn"] = self.next_turn
        texts = {"first_text": self.first_text, "next_text": self.next_text}
        plain = {name: text for name, text in texts.items() if text is not None}
        for turn in (*turns.values(), *plain.values()):
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
        for name, text in plain.items():
            if text.count("{prompt}") != 1:
                raise BundleError(
                    f"prompt.{name} is {text!r}, which must hold {{prompt}} exactly once: change the chat "
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
    """What happens to every view: resampled (PIL's code, 3 = bicubic), rescaled, normalised."""

    resample: int
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 0 <= self.resample <= 5:
            raise BundleError(
                f"preprocess.resample is {self.resample}, expected PIL's code 0..5 (3 is bicubic): {_REBUILD}"
            )
        if min(self.std) <= 0.0:
            raise BundleError(f"preprocess.std is {list(self.std)}, expected more than 0: {_REBUILD}")
        if (factor := self.rescale_factor) <= 0.0:
            raise BundleError(f"preprocess.rescale_factor is {factor}, expected more than 0: {_REBUILD}")


@dataclass(frozen=True)
class PruningInfo:
    """What the pruned encoder graph does, and what a request gets that says nothing.

    At most one of `default_ratio` and `default_tokens` is set; with neither, such a request is not pruned.
    `position_ids`: kept tokens have the positions that they have in the unpruned prompt (`original`), or the
    prompt is counted anew (`renumber`). `row_scope`: strategy `row` compares the rows of a `tile`, or those
    of the `stitched` image, on the host. `newline`: newline vectors all stay (`keep_all`), or those of lines
    with a kept token (`keep_nonempty`), or none (`drop`).
    """

    strategy: str
    aggregation: str
    layer: int
    score_path: str
    gather: str
    position_ids: str
    default_ratio: float | None
    default_tokens: int | None
    row_scope: str = "tile"
    newline: str = "keep_all"

    def __post_init__(self) -> None:
        _one_of("pruning.strategy", self.strategy, STRATEGIES)
        _one_of("pruning.aggregation", self.aggregation, AGGREGATIONS)
        _one_of("pruning.score_path", self.score_path, SCORE_PATHS)
        _one_of("pruning.gather", self.gather, GATHERS)
        _one_of("pruning.position_ids", self.position_ids, POSITION_POLICIES)
        _one_of("pruning.row_scope", self.row_scope, ROW_SCOPES)
        _one_of("pruning.newline", self.newline, NEWLINE_POLICIES)
        if self.row_scope == "stitched" and self.strategy != "row":
            raise BundleError(
                'pruning.row_scope is "stitched", which is for strategy "row", but that is '
                f'"{self.strategy}": {_REBUILD}'
            )
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
    """Shapes of the decoder and its KV cache.

    `max_positions` bounds the positions of prompt and answer, which with M-RoPE are fewer than their tokens.
    `position_axes` is the number of rows of its position ids: 1, or 3 with M-RoPE (time, height, width).
    `caches` says of each decoder graph how its cache grows (`contract.CACHES`); formats 1 and 2 have one
    graph, which concatenates.
    """

    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_positions: int
    position_axes: int = 1
    caches: dict[str, str] = field(default_factory=lambda: {contract.DECODER: contract.CONCAT})
    cache_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise BundleError(f"decoder.{name} is {value}, expected at least 1: {_REBUILD}")
        _one_of("decoder.cache_dtype", self.cache_dtype, CACHE_DTYPES)
        if not self.caches:
            raise BundleError(f"decoder.caches is empty, expected one of {', '.join(DECODERS)}: {_REBUILD}")
        for graph, kind in self.caches.items():
            _one_of("a graph of decoder.caches", graph, DECODERS)
            _one_of(f"decoder.caches.{graph}", kind, contract.CACHES)


@dataclass(frozen=True)
class GraphInfo:
    """One graph file with the tensors that cross its border, in order.

    `precision` is that of its weights: int8 and int4 leave activations in float32, int4 decoders for TensorRT
    in float16. In w8a8 and fp8 the activations of products are rounded to 8 bits too.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str = "fp32"

    def __post_init__(self) -> None:
        _one_of("graphs.precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class ConstantInfo:
    """A float32 tensor that the host needs: little-endian, C order, nothing before or behind it."""

    file: str
    shape: tuple[int, ...]


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
    layout: ImageLayout
    pruning: PruningInfo
    decoder: DecoderInfo
    graphs: dict[str, GraphInfo]
    files: dict[str, FileInfo]
    constants: dict[str, ConstantInfo] = field(default_factory=dict)
    parity: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        expected = {*GRAPHS, *self.decoder.caches}
        if set(self.graphs) != expected:
            raise BundleError(f"graphs is {sorted(self.graphs)}, expected {sorted(expected)}: {_REBUILD}")
        for name in self.files:
            _check_inside(name)
        for graph, info in self.graphs.items():
            if info.file not in self.files:
                raise BundleError(
                    f'graphs.{graph}.file is "{info.file}", which files does not list: {_REBUILD}'
                )
        for constant, entry in self.constants.items():
            if entry.file not in self.files:
                raise BundleError(
                    f'constants.{constant}.file is "{entry.file}", which files does not list: {_REBUILD}'
                )
        self._check_layout()

    def _check_layout(self) -> None:
        layout, pruning = self.layout, self.pruning
        if pruning.strategy == "row" and not layout.has_grid:
            raise BundleError(
                'pruning.strategy is "row", which needs a grid of tokens, but layout.grid is null: '
                f"{_REBUILD}"
            )
        total = layout.image_tokens
        if pruning.default_tokens is not None and total is not None and pruning.default_tokens > total:
            raise BundleError(
                f"pruning.default_tokens is {pruning.default_tokens}, but an image has {total} tokens: "
                f"{_REBUILD}"
            )
        if layout.position_axes != self.decoder.position_axes:
            raise BundleError(
                f"decoder.position_axes is {self.decoder.position_axes}, but the layout {layout.kind} has "
                f"{layout.position_axes}: {_REBUILD}"
            )
        if layout.position_axes > 1 and pruning.position_ids != "original":
            raise BundleError(
                f'pruning.position_ids is "{pruning.position_ids}", but positions of time, height and width '
                f'must be "original": {_REBUILD}'
            )
        if layout.has_newlines and IMAGE_NEWLINE not in self.constants:
            raise BundleError(
                f"constants lacks {IMAGE_NEWLINE}, which the layout {layout.kind} needs: {_REBUILD}"
            )
        vector = self.constants.get(IMAGE_NEWLINE)
        if vector is not None and vector.shape != (self.decoder.hidden_size,):
            raise BundleError(
                f"constants.{IMAGE_NEWLINE}.shape is {list(vector.shape)}, expected "
                f"[{self.decoder.hidden_size}], decoder.hidden_size: {_REBUILD}"
            )

    @property
    def grid_input(self) -> bool:
        """Whether the pruned encoder takes `grid`: whole rows are kept, and their length varies."""
        return self.pruning.strategy == "row" and self.layout.unit_grid is None

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
        manifest: Manifest = decode(cls, upgraded(data, version), "bundle.json")
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
