"""Names, dtypes and symbolic shapes of every tensor that crosses a graph border.

The only place where these strings are written: exporters name their inputs and outputs from this table, and
runtimes bind from it. File names follow the transformers.js / optimum layout, so other hosts find the graphs
where they look for them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ATTENTION_MASK",
    "DECODER",
    "EMBED_TOKENS",
    "IMAGE_FEATURES",
    "INPUTS_EMBEDS",
    "INPUT_IDS",
    "KEPT_INDICES",
    "LOGITS",
    "NUM_KEEP",
    "NUM_LOGITS_TO_KEEP",
    "PIXEL_VALUES",
    "POSITION_IDS",
    "TOKEN_SCORES",
    "VISION_ENCODER",
    "VISION_ENCODER_FOPRU",
    "GraphContract",
    "TensorSpec",
    "data_file",
    "decoder_contract",
    "graph_file",
    "past_name",
    "present_name",
    "static_contracts",
]

VISION_ENCODER = "vision_encoder"
VISION_ENCODER_FOPRU = "vision_encoder_fopru"
EMBED_TOKENS = "embed_tokens"
DECODER = "decoder_model_merged"

PIXEL_VALUES = "pixel_values"
NUM_KEEP = "num_keep"
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


def static_contracts(image_size: tuple[int, int], tokens: int, width: int) -> dict[str, GraphContract]:
    """Contracts of the graphs around the decoder.

    Args:
        image_size: (H, W) in pixels.
        tokens: rows of `image_features` without pruning, with the prefix (CLS) rows that the model feeds on.
        width: D, the language model's hidden size.
    """
    pixels = TensorSpec(PIXEL_VALUES, "float32", ("images", 3, *image_size))
    return {
        VISION_ENCODER: GraphContract(
            (pixels,), (TensorSpec(IMAGE_FEATURES, "float32", ("images", tokens, width)),)
        ),
        VISION_ENCODER_FOPRU: GraphContract(
            (pixels, TensorSpec(NUM_KEEP, "int64", (1,))),
            (
                TensorSpec(IMAGE_FEATURES, "float32", ("images", "kept_rows", width)),
                TensorSpec(KEPT_INDICES, "int64", ("images", "kept")),
                TensorSpec(TOKEN_SCORES, "float32", ("images", "tokens")),
            ),
        ),
        EMBED_TOKENS: GraphContract(
            (TensorSpec(INPUT_IDS, "int64", ("batch", "seq")),),
            (TensorSpec(INPUTS_EMBEDS, "float32", ("batch", "seq", width)),),
        ),
    }


def decoder_contract(layers: int, kv_heads: int, head_dim: int, vocab: int, width: int) -> GraphContract:
    """Contract of `decoder_model_merged`.

    `past` rows are cached, `seq` rows are new, `total` = past + seq; logits cover the last
    `num_logits_to_keep` positions (0 = all).
    """
    parts = [(layer, part) for layer in range(layers) for part in ("key", "value")]
    cache = ("batch", kv_heads, "past", head_dim)
    grown = ("batch", kv_heads, "total", head_dim)
    return GraphContract(
        inputs=(
            TensorSpec(INPUTS_EMBEDS, "float32", ("batch", "seq", width)),
            TensorSpec(ATTENTION_MASK, "int64", ("batch", "total")),
            TensorSpec(POSITION_IDS, "int64", ("batch", "seq")),
            TensorSpec(NUM_LOGITS_TO_KEEP, "int64", ()),
            *(TensorSpec(past_name(layer, part), "float32", cache) for layer, part in parts),
        ),
        outputs=(
            TensorSpec(LOGITS, "float32", ("batch", "logits", vocab)),
            *(TensorSpec(present_name(layer, part), "float32", grown) for layer, part in parts),
        ),
    )
