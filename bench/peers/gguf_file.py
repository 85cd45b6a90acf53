"""A checkpoint of a language model as a GGUF file, one tensor in memory at a time.

The names and shapes are those of the `gguf` package. Matrices keep their type, float32 or float16;
the rest becomes float32, as llama.cpp wants it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.peers.base import Array, optional

__all__ = ["write_gguf"]

# Rotary embeddings of `llama` turn neighbouring pairs in llama.cpp, the two halves of a head in transformers.
_INTERLEAVED = ("llama",)
# Float32 tensors of one row: norms and biases.
_ONE_ROW = 1


def write_gguf(checkpoint: Path, target: Path) -> None:
    """Write `target` whole or not at all.

    Raises:
        BenchError: a weight of the checkpoint has no place in a GGUF file.
    """
    gguf = optional("gguf")
    config = json.loads((checkpoint / "config.json").read_text())
    kind = config["model_type"]
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, kind)
    _write_settings(writer, config)
    arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[kind]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    heads = (config["num_attention_heads"], config["num_key_value_heads"]) if kind in _INTERLEAVED else None
    # Two passes over the files: the table of all tensors comes first in the file, and values fill gigabytes.
    for name, values in _weights(checkpoint):
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise BenchError(
                f"{checkpoint} has a weight {name!r} that GGUF has no name for: use another model"
            )
        kept = _kept(values)
        writer.add_tensor_info(found, kept.shape, kept.dtype, kept.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, values in _weights(checkpoint):
        writer.write_tensor_data(_kept(_interleaved(name, values, heads)))
    writer.close()
    partial.replace(target)


def _write_settings(writer: Any, config: dict[str, Any]) -> None:
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")  # prompts are ids


def _weights(checkpoint: Path) -> Iterator[tuple[str, Array]]:
    from safetensors import safe_open

    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)


def _kept(values: Array) -> Array:
    return values.astype(np.float32) if values.ndim == _ONE_ROW else values


def _interleaved(name: str, values: Array, heads: tuple[int, int] | None) -> Array:
    """Rows of a query or key projection in the order of llama.cpp's `llama`; anything else as it is."""
    if heads is None or not any(part in name for part in ("q_proj", "k_proj")):
        return values
    count = heads[0] if "q_proj" in name else heads[1]
    halves = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
