"""onnxruntime-genai on our ONNX files: the `shared` decoder of a bundle with its embedding put in front.

Its decoder-only models take ids, and logits of the last position only where the graph says so in its shape.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.peers.base import (
    Array,
    Engine,
    Ids,
    Peer,
    SteppingEngine,
    Task,
    Variant,
    optional,
    require_bundle,
)
from runtime import contract, load_bundle
from runtime.bundle import Bundle

__all__ = ["PEER", "with_embedding"]

_MODEL = "model.onnx"
_CONFIG = "genai_config.json"
_PREFIX = "embed/"
_REPLACED = (contract.INPUTS_EMBEDS, contract.NUM_LOGITS_TO_KEEP)


class _GenAI(SteppingEngine):
    """A model; each prompt has a generator, and with it a KV cache, of its own."""

    def __init__(self, task: Task) -> None:
        self._api = optional("onnxruntime_genai")
        self._api.disable_telemetry_events()
        config = self._api.Config(str(task.folder))
        threads = {"intra_op_num_threads": task.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
        self._model = self._api.Model(config)
        self._capacity = task.capacity
        self._generator: Any = None

    def prefill(self, ids: Ids) -> Array:
        options = self._api.GeneratorParams(self._model)
        options.set_search_options(max_length=self._capacity, do_sample=False)
        self._generator = self._api.Generator(self._model, options)
        return self._append(ids)

    def step(self, token: int) -> Array:
        return self._append(np.array([token]))

    def _append(self, ids: Ids) -> Array:
        self._generator.append_tokens(ids[None].astype(np.int32))
        logits: Array = self._generator.get_logits()[0, -1]
        return logits


def with_embedding(decoder: Any, embedding: Any) -> Any:
    """One ONNX model of the two: ids in, logits of the last position out.

    Args:
        decoder: `onnx.ModelProto` of kind `shared`; it is changed.
        embedding: `onnx.ModelProto` from `input_ids` to `inputs_embeds`.
    """
    import onnx

    embedding = onnx.compose.add_prefix(embedding, _PREFIX, rename_inputs=False, rename_outputs=False)
    graph = decoder.graph
    nodes = [*embedding.graph.node, *graph.node]
    inputs = [value for value in graph.input if value.name not in _REPLACED]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend([*embedding.graph.input, *inputs])
    graph.initializer.extend(embedding.graph.initializer)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), contract.NUM_LOGITS_TO_KEEP))
    (logits,) = (value for value in graph.output if value.name == contract.LOGITS)
    logits.type.tensor_type.shape.dim[1].dim_value = 1
    return decoder


def _prepare(task: Task) -> None:
    import onnx

    bundle = load_bundle(require_bundle(task), verify=False)
    caches = bundle.manifest.decoder.caches
    if caches.get(contract.DECODER) != contract.SHARED:
        raise BenchError(
            f"onnxruntime-genai needs a decoder with a cache of kind {contract.SHARED}, and "
            f"{bundle.path} has {', '.join(caches.values())}: build the bundle again"
        )
    paths = [bundle.graph(graph) for graph in (contract.DECODER, contract.EMBED_TOKENS)]
    models = [onnx.load(path, load_external_data=False) for path in paths]
    shutil.rmtree(task.folder, ignore_errors=True)
    task.folder.mkdir(parents=True)
    # Linked, not copied: it refuses weights outside the folder of the model.
    for name in {entry.value for model in models for entry in _locations(model)}:
        _link(paths[0].parent / name, task.folder / name)
    onnx.save(with_embedding(*models), task.folder / _MODEL)
    config = _config(bundle, json.loads((task.checkpoint / "config.json").read_text()))
    (task.folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _locations(model: Any) -> list[Any]:
    return [
        entry
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    ]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _config(bundle: Bundle, text: dict[str, Any]) -> dict[str, Any]:
    """`genai_config.json` of a decoder whose tensors have the names of our contract."""
    info = bundle.manifest.decoder
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": _MODEL,
        "head_size": info.head_dim,
        "hidden_size": info.hidden_size,
        "num_attention_heads": text["num_attention_heads"],
        "num_hidden_layers": info.layers,
        "num_key_value_heads": info.kv_heads,
        "inputs": {
            "input_ids": contract.INPUT_IDS,
            "attention_mask": contract.ATTENTION_MASK,
            "position_ids": contract.POSITION_IDS,
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": contract.LOGITS,
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    return {
        "model": {
            "type": "decoder",
            "decoder": decoder,
            "context_length": info.max_positions,
            "vocab_size": info.vocab_size,
            # It looks for the end only in tokens that it chose itself; these ids only have to exist.
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
        "search": {"past_present_share_buffer": True, "num_beams": 1, "max_length": info.max_positions},
    }


def _open(task: Task) -> Engine:
    return _GenAI(task)


PEER = Peer(
    name="onnxruntime-genai",
    packages=("onnxruntime-genai",),
    modules=("onnxruntime_genai", "onnx"),
    install="pip install onnxruntime-genai",
    variants=(Variant("fp32", "fp32"),),
    prepare=_prepare,
    open=_open,
    needs_bundle=True,
    about="onnxruntime-genai: the decoder of the bundle (GroupQueryAttention, shared buffers) with its "
    "embedding put in front; each token appended by `append_tokens`.",
)
