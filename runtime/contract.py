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
    "ATTENTION_MASK",
    "DECODER",
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
    """Path of a graph's weight file in a bundle; `vision_encoder_fopru` shares `vision_encoder`'s."""
    owner = VISION_ENCODER if graph == VISION_ENCODER_FOPRU else graph
    return f"onnx/{owner}.onnx_data"


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


def decoder_contract(info: DecoderInfo) -> GraphContract:
    """Contract of `decoder_model_merged`.

    `past` rows are cached, `seq` rows are new, `total` = past + seq; logits cover the last
    `num_logits_to_keep` positions (0 = all). Positions have three rows (time, height, width) with M-RoPE.
    """
    parts = [(layer, part) for layer in range(info.layers) for part in ("key", "value")]
    cache = ("batch", info.kv_heads, "past", info.head_dim)
    grown = ("batch", info.kv_heads, "total", info.head_dim)
    positions = ("batch", "seq") if info.position_axes == 1 else (info.position_axes, "batch", "seq")
    return GraphContract(
        inputs=(
            TensorSpec(INPUTS_EMBEDS, "float32", ("batch", "seq", info.hidden_size)),
            TensorSpec(ATTENTION_MASK, "int64", ("batch", "total")),
            TensorSpec(POSITION_IDS, "int64", positions),
            TensorSpec(NUM_LOGITS_TO_KEEP, "int64", ()),
            *(TensorSpec(past_name(layer, part), "float32", cache) for layer, part in parts),
        ),
        outputs=(
            TensorSpec(LOGITS, "float32", ("batch", "logits", info.vocab_size)),
            *(TensorSpec(present_name(layer, part), "float32", grown) for layer, part in parts),
        ),
    )
