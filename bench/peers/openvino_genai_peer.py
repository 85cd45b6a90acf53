"""OpenVINO GenAI's LLMPipeline, on the IR that optimum-intel exports from the same checkpoint.

optimum-intel pins an older transformers than this project uses, so its export may run in another interpreter:
`FOPRU_BENCH_OPTIMUM=/path/to/python`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.peers.base import Answer, Array, Engine, Ids, Peer, Task, Variant, optional

__all__ = ["OPTIMUM", "PEER", "export_ir"]

OPTIMUM = "FOPRU_BENCH_OPTIMUM"
"""Environment variable: the Python that has optimum-intel."""

_MODEL = "openvino_model.xml"
_TOKENIZERS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
# Weights of the IR (`optimum-cli export openvino --weight-format`); bf16 is computed from the float32 ones.
_WEIGHTS = {
    "fp32": ("fp32",),
    "bf16": ("fp32",),
    "int8": ("int8",),
    "int4": ("int4", "--sym", "--group-size", "32", "--ratio", "1.0", "--all-layers"),
}


class _GenAI(Engine):
    """A pipeline with paged attention, its default, and without its prefix cache.

    Prompts repeat from round to round: with the prefix cache, a prefill would be a look-up.
    """

    def __init__(self, task: Task) -> None:
        self._openvino, self._api = optional("openvino"), optional("openvino_genai")
        self._task = task
        scheduler = self._api.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = task.capacity  # a prompt in one piece
        self._pipeline = self._api.LLMPipeline(
            str(_folder(task)), "CPU", scheduler_config=scheduler, **_properties(task)
        )

    def generate(self, ids: Ids, new: int) -> Answer:
        options = self._api.GenerationConfig()
        options.max_new_tokens, options.ignore_eos, options.do_sample = new, True, False
        given = self._api.TokenizedInputs(
            self._openvino.Tensor(np.ascontiguousarray(ids[None])),
            self._openvino.Tensor(np.ones((1, len(ids)), np.int64)),
        )
        start = time.perf_counter()
        found = self._pipeline.generate(given, options)
        seconds = time.perf_counter() - start
        prefill = found.perf_metrics.get_ttft().mean / 1e3
        return Answer.timed(prefill, seconds - prefill, found.tokens[0])

    def logits(self, ids: Ids, more: Ids) -> Array:
        """The pipeline tells no logits: those of the same IR with the same properties, in plain OpenVINO.

        Raises:
            BenchError: the pipeline answers another token than these logits do.
        """
        compiled = self._openvino.Core().compile_model(
            _folder(self._task) / _MODEL, "CPU", _properties(self._task)
        )
        every = np.concatenate([ids, more])
        names = {name for port in compiled.inputs for name in port.get_names()}
        feeds: dict[str, Any] = {
            "input_ids": every[None],
            "attention_mask": np.ones((1, len(every)), np.int64),
            "position_ids": np.arange(len(every))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        request = compiled.create_infer_request()
        request.infer({name: value for name, value in feeds.items() if name in names})
        rows: Array = request.get_tensor("logits").data[0, len(ids) - 1 :].astype(np.float32)
        (token,) = self.generate(ids, 1).tokens
        # Near-ties in low precision may fall either way: the two run different attention kernels.
        if rows[0, token] < rows[0].max() - 0.05 * rows[0].std():
            raise BenchError(
                f"OpenVINO GenAI answers token {token}, the same IR in plain OpenVINO "
                f"{int(rows[0].argmax())}: its times are of another model"
            )
        return rows


def _properties(task: Task) -> dict[str, Any]:
    """fp32 is float32 throughout; the others compute in bf16, with the engine's own KV cache (u8)."""
    common: dict[str, Any] = {"INFERENCE_NUM_THREADS": task.threads}
    if task.variant.precision == "fp32":
        return common | {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    return common | {"INFERENCE_PRECISION_HINT": "bf16"}


def _folder(task: Task) -> Path:
    return task.folder / _WEIGHTS[task.variant.precision][0]


def export_ir(checkpoint: Path, folder: Path, task: str, weights: tuple[str, ...]) -> None:
    """The IR of a checkpoint at `folder`, with its tokenizer, exported where it is not there.

    Args:
        checkpoint: as transformers saves it.
        folder: of the IR; whole or not there.
        task: of optimum-intel, such as `text-generation-with-past`.
        weights: what follows `--weight-format`.

    Raises:
        BenchError: optimum-intel is not installed, or refuses the model.
    """
    if not folder.is_dir():
        python = os.environ.get(OPTIMUM, sys.executable)
        partial = folder.with_name(folder.name + ".partial")
        command = [python, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        command += ["--model", str(checkpoint), "--task", task, "--weight-format", *weights, str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BenchError(
                f"optimum-intel cannot export with {python}: {last}; pip install optimum-intel "
                f"in another environment and name its Python in {OPTIMUM}"
            )
        partial.rename(folder)
    if not all((folder / name).is_file() for name in _TOKENIZERS):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        pair = optional("openvino_tokenizers").convert_tokenizer(tokenizer, with_detokenizer=True)
        for model, name in zip(pair, _TOKENIZERS, strict=True):
            optional("openvino").save_model(model, folder / name)


def _prepare(task: Task) -> None:
    weights = _WEIGHTS[task.variant.precision]
    export_ir(task.checkpoint, _folder(task), "text-generation-with-past", weights)


def _open(task: Task) -> Engine:
    return _GenAI(task)


PEER = Peer(
    name="openvino-genai",
    packages=("openvino", "openvino-genai", "openvino-tokenizers"),
    modules=("openvino", "openvino_genai", "openvino_tokenizers"),
    install=f"pip install openvino-genai, and optimum-intel in the environment that {OPTIMUM} names",
    variants=tuple(Variant(name, name) for name in _WEIGHTS),
    prepare=_prepare,
    open=_open,
    about="OpenVINO GenAI: LLMPipeline with paged attention, prefix cache off; fp32 is float32 throughout, "
    "the others compute in bf16 with its default KV cache (u8); int4 in groups of 32, head and embedding "
    "included.",
)
