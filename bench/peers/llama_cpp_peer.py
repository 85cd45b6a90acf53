"""llama.cpp, through the low-level functions of llama-cpp-python."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.peers.base import Array, Engine, Ids, Peer, SteppingEngine, Task, Variant, optional
from bench.peers.gguf_file import write_gguf

__all__ = ["PEER"]

_SOURCE = "source.gguf"
# llama.cpp's numbers of file types (`LLAMA_FTYPE_MOSTLY_*`), and of the float32 tensor type.
_FILE_TYPES = {"bf16": 32, "q8_0": 7, "q4_0": 2}
_GGML_F32 = 0
# It tells hundreds of lines about a model, and a failed call says so in its return value. Kept here, since
# the library keeps the pointer.
_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


def _library() -> Any:
    api = optional("llama_cpp")
    api.llama_log_set(_SILENT, ctypes.c_void_p(0))
    api.llama_backend_init()
    return api


class _LlamaCpp(SteppingEngine):
    """A model and one context. Owns both; they live as long as the process."""

    def __init__(self, task: Task) -> None:
        self._api = _library()
        path = task.folder / _file_name(task.variant)
        self._model = self._api.llama_model_load_from_file(
            str(path).encode(), self._api.llama_model_default_params()
        )
        if not self._model:
            raise BenchError(f"llama.cpp cannot load {path}: remove the folder and run again")
        self._context = self._api.llama_init_from_model(self._model, self._options(task))
        if not self._context:
            raise BenchError(f"llama.cpp has no context of {task.capacity} positions: ask for fewer --rows")
        vocabulary = self._api.llama_model_get_vocab(self._model)
        self._vocabulary = self._api.llama_vocab_n_tokens(vocabulary)

    def prefill(self, ids: Ids) -> Array:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        return self._decode(ids)

    def step(self, token: int) -> Array:
        return self._decode([token])

    def _decode(self, ids: Any) -> Array:
        tokens = (self._api.llama_token * len(ids))(*map(int, ids))
        status = self._api.llama_decode(self._context, self._api.llama_batch_get_one(tokens, len(ids)))
        if status:
            raise BenchError(f"llama.cpp answered {status} to {len(ids)} tokens: ask for fewer --rows")
        found = self._api.llama_get_logits_ith(self._context, -1)
        logits: Array = np.ctypeslib.as_array(found, (self._vocabulary,))
        return logits

    def _options(self, task: Task) -> Any:
        options = self._api.llama_context_default_params()
        # One call takes the whole prompt; llama.cpp cuts it into micro-batches of its own choice (512).
        options.n_ctx = options.n_batch = task.capacity
        options.n_threads = options.n_threads_batch = task.threads
        if task.variant.precision == "fp32":
            options.type_k = options.type_v = _GGML_F32
        return options


def _file_name(variant: Variant) -> str:
    return _SOURCE if variant.name == "fp32" else f"{variant.name}.gguf"


def _prepare(task: Task) -> None:
    source, target = task.folder / _SOURCE, task.folder / _file_name(task.variant)
    if not source.is_file():
        write_gguf(task.checkpoint, source)
    if target.is_file():
        return
    api = _library()
    options = api.llama_model_quantize_default_params()
    options.ftype = _FILE_TYPES[task.variant.name]
    options.nthread = task.threads
    options.pure = True  # the embedding, which is the head too, of the same type as the layers
    partial = target.with_suffix(".partial")
    if api.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(options)):
        raise BenchError(f"llama.cpp cannot quantise {source} to {task.variant.name}: choose another variant")
    partial.replace(target)


def _open(task: Task) -> Engine:
    return _LlamaCpp(task)


PEER = Peer(
    name="llama.cpp",
    packages=("llama-cpp-python",),
    modules=("llama_cpp", "gguf"),
    install="pip install gguf && CMAKE_ARGS=-DLLAVA_BUILD=OFF pip install llama-cpp-python",
    variants=(
        Variant("fp32", "fp32"),
        Variant("bf16", "bf16"),
        Variant("q8_0", "int8"),
        Variant("q4_0", "int4"),
    ),
    prepare=_prepare,
    open=_open,
    about="llama.cpp: built for the processor at hand (GGML_NATIVE), KV cache float16, float32 with fp32 "
    "weights, micro-batches of 512; q8_0 and q4_0 are round-to-nearest in blocks of 32, head and embedding "
    "included.",
)
