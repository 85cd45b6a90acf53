"""Names, dtypes and symbolic shapes of every tensor that crosses a graph border.

The only place where these strings are written: exporters name their inputs and outputs from this table, and
runtimes bind from it. File names follow the transformers.js / optimum layout, so other hosts find the graphs
where they look for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.layouts import ImageLayout
    from runtime.manifest import DecoderInfo

__all__ = [
    "APPEND",
    "ATTENTION_MASK",
    "CACHES",
    "CONCAT",
    "DECODER",
    "DECODER_PORTABLE",
    "EMBED_TOKENS",
    "GRID",
    "IMAGE_FEATURES",
    "INPUTS_EMBEDS",
    "INPUT_IDS",
    "KEPT_INDICES",
    "LOGITS",
    "NUM_KEEP",
    "NUM_LOGITS_TO_KEEP",
    "PIXEL_VALUES",
    "POSITION_IDS",
    "SHARED",
    "TOKEN_MASK",
    "TOKEN_SCORES",
    "VISION_ENCODER",
    "VISION_ENCODER_FOPRU",
    "GraphContract",
    "TensorSpec",
    "data_file",
    "decoder_contract",
    "embed_contract",
    "graph_file",
    "past_name",
    "present_name",
    "vision_contracts",
]

VISION_ENCODER = "vision_encoder"
VISION_ENCODER_FOPRU = "vision_encoder_fopru"
EMBED_TOKENS = "embed_tokens"
DECODER = "decoder_model_merged"
DECODER_PORTABLE = "decoder_model_portable"

SHARED = "shared"
APPEND = "append"
CONCAT = "concat"
CACHES = (SHARED, APPEND, CONCAT)
"""How a decoder graph grows its key/value cache (see `decoder_contract`)."""

PIXEL_VALUES = "pixel_values"
NUM_KEEP = "num_keep"
TOKEN_MASK = "token_mask"
GRID = "grid"
IMAGE_FEATURES = "image_features"
KEPT_INDICES = "kept_indices"
TOKEN_SCORES = "token_scores"
INPUT_IDS = "input_ids"
INPUTS_EMBEDS = "inputs_embeds"
ATTENTION_MASK = "attention_mask"
POSITION_IDS = "position_ids"
NUM_LOGITS_TO_KEEP = "num_logits_to_keep"
LOGITS = "logits"


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output: a dim is an int when fixed, a name when it varies at run time."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphContract:
    """Ordered inputs and outputs of one graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def graph_file(graph: str) -> str:
    """Path of a graph inside a bundle."""
    return f"onnx/{graph}.onnx"


def data_file(graph: str) -> str:
    """Path of a graph's weight file in a bundle; graphs that are made of one another share theirs."""
    owners = {VISION_ENCODER_FOPRU: VISION_ENCODER, DECODER_PORTABLE: DECODER}
    return f"onnx/{owners.get(graph, graph)}.onnx_data"


def past_name(layer: int, part: str) -> str:
    """Decoder cache input of one layer; `part` is `key` or `value`."""
    return f"past_key_values.{layer}.{part}"


def present_name(layer: int, part: str) -> str:
    """Decoder cache output of one layer; `part` is `key` or `value`."""
    return f"present.{layer}.{part}"


def vision_contracts(
    layout: ImageLayout, width: int, *, grid_input: bool = False
) -> dict[str, GraphContract]:
    """Contracts of `vision_encoder` and `vision_encoder_fopru`.

    The pruned encoder also takes `token_mask` bool where units may hold padding, and `grid` int64 [2] (rows,
    columns).

    Args:
        layout: how images become units.
        width: D, the language model's hidden size.
        grid_input: whether the pruned graph takes `grid`: strategy `row` where the grid varies.
    """
    pixels = TensorSpec(PIXEL_VALUES, "float32", layout.pixel_shape)
    units, tokens = layout.pixel_shape[0], layout.unit_tokens
    rows: int | str = "tokens" if tokens is None else layout.prefix_tokens + tokens
    inputs = [pixels, *layout.extra_inputs, TensorSpec(NUM_KEEP, "int64", (1,))]
    if layout.masked:
        inputs.append(TensorSpec(TOKEN_MASK, "bool", (units, "tokens")))
    if grid_input:
        inputs.append(TensorSpec(GRID, "int64", (2,)))
    return {
        VISION_ENCODER: GraphContract(
            (pixels, *layout.extra_inputs), (TensorSpec(IMAGE_FEATURES, "float32", (units, rows, width)),)
        ),
        VISION_ENCODER_FOPRU: GraphContract(
            tuple(inputs),
            (
                TensorSpec(IMAGE_FEATURES, "float32", (units, "kept_rows", width)),
                TensorSpec(KEPT_INDICES, "int64", (units, "kept")),
                TensorSpec(TOKEN_SCORES, "float32", (units, "tokens")),
            ),
        ),
    }


def embed_contract(width: int) -> GraphContract:
    """Contract of `embed_tokens`; `width` is D."""
    return GraphContract(
        (TensorSpec(INPUT_IDS, "int64", ("batch", "seq")),),
        (TensorSpec(INPUTS_EMBEDS, "float32", ("batch", "seq", width)),),
    )


def decoder_contract(info: DecoderInfo, cache: str) -> GraphContract:
    """Contract of a decoder graph with a kind of cache.

    `past` rows are cached, `seq` rows are new, `total` = past + seq; logits cover the last
    `num_logits_to_keep` positions (0 = all). Positions have three rows (time, height, width) with M-RoPE.

    Caches: `shared` is one buffer of `capacity` rows, past and present at once; row b of the mask holds as
    many ones as its sequence has rows, the new ones included, and they come first. `append` takes and
    returns rows time-major, and returns the new ones only, which belong behind the past. `concat` returns
    past and new as a new tensor.
    """
    parts = [(layer, part) for layer in range(info.layers) for part in ("key", "value")]
    past, present = _CACHE_AXES[cache]
    sizes: dict[str, int | str] = {"kv_heads": info.kv_heads, "head_dim": info.head_dim}
    positions = ("batch", "seq") if info.position_axes == 1 else (info.position_axes, "batch", "seq")

    def rows(name: str, axes: tuple[str, ...]) -> TensorSpec:
        return TensorSpec(name, info.cache_dtype, tuple(sizes.get(axis, axis) for axis in axes))

    return GraphContract(
        inputs=(
            TensorSpec(INPUTS_EMBEDS, "float32", ("batch", "seq", info.hidden_size)),
            TensorSpec(ATTENTION_MASK, "int64", ("batch", "total")),
            TensorSpec(POSITION_IDS, "int64", positions),
            TensorSpec(NUM_LOGITS_TO_KEEP, "int64", ()),
            *(rows(past_name(layer, part), past) for layer, part in parts),
        ),
        outputs=(
            TensorSpec(LOGITS, "float32", ("batch", "logits", info.vocab_size)),
            *(rows(present_name(layer, part), present) for layer, part in parts),
        ),
    )


_CACHE_AXES = {
    SHARED: (("batch", "kv_heads", "capacity", "head_dim"), ("batch", "kv_heads", "capacity", "head_dim")),
    APPEND: (("batch", "past", "kv_heads", "head_dim"), ("batch", "seq", "kv_heads", "head_dim")),
    CONCAT: (("batch", "kv_heads", "past", "head_dim"), ("batch", "kv_heads", "total", "head_dim")),
}
