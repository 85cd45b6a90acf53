"""The decoders that engines are compared on, as checkpoints of a language model alone.

Engines of language models take `Qwen2ForCausalLM` or `LlamaForCausalLM`. Such a checkpoint is written with
random weights, or cut out of one of a vision-language model, whose bundle then has the same weights.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.checkpoints import RECIPE_FILE, write_model
from bench.configurations import CONFIGURATIONS
from bench.errors import BenchError
from bench.processors import build_tokenizer, special_token_ids
from runtime.counts import kept_count

__all__ = ["ARCHITECTURES", "DECODERS", "ensure_decoder", "language_model_of", "prompt_ids", "rows_at"]

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

DECODERS: dict[str, dict[str, Any]] = {
    "qwen2-0.5b": CONFIGURATIONS["llava-onevision-0.5b"].text,
    "vicuna-7b": CONFIGURATIONS["llava-1.5-7b"].text,
    "smolvlm-256m": CONFIGURATIONS["smolvlm-256m-decoder"].text,
    "tiny": CONFIGURATIONS["tiny"].text,
}
"""Published decoders by name."""

# A language model inside a vision-language model, by all the names that releases of transformers gave it.
_LANGUAGE = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?(?!lm_head)")
_HEAD = re.compile(r"^(?:language_model\.)?lm_head\.")


def ensure_decoder(name: str, directory: Path, dtype: str = "float32") -> Path:
    """The random-weight checkpoint of a published decoder at `directory`, written where it is not there.

    Raises:
        BenchError: an unknown name, or `directory` holds something else.
    """
    if name not in DECODERS:
        raise BenchError(f"no decoder is called {name!r}: choose one of {', '.join(DECODERS)}")
    from transformers import AutoConfig

    settings = dict(DECODERS[name])
    kind = settings.pop("model_type")
    ids = {f"{role}_token_id": special_token_ids()[role] for role in ("pad", "bos", "eos")}
    config = AutoConfig.for_model(kind, **settings, **ids)
    config.architectures = [ARCHITECTURES[kind]]
    record = _record([name, dtype, config.to_dict()])
    if _is_current(directory, record):
        return directory
    _make_room(directory)
    write_model(config, build_tokenizer(config.max_position_embeddings), directory, dtype=dtype)
    (directory / RECIPE_FILE).write_text(record)  # last: a checkpoint without it is written again
    return directory


def language_model_of(checkpoint: Path, directory: Path) -> Path:
    """The language model of a checkpoint, at `directory`; the checkpoint itself if it is nothing else.

    One shard is in memory at a time.

    Raises:
        BenchError: the language model is of a kind that the engines here have no common name for.
    """
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(checkpoint)
    text = config.get_text_config()
    if text.model_type not in ARCHITECTURES:
        raise BenchError(
            f"the language model of {checkpoint} is of kind {text.model_type!r}: "
            f"engines are compared on {', '.join(ARCHITECTURES)}"
        )
    if text is config:
        return checkpoint
    sources = sorted(checkpoint.glob("*.safetensors"))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    record = _record([text.to_dict(), stats])
    if _is_current(directory, record):
        return directory
    _make_room(directory)
    text.architectures = [ARCHITECTURES[text.model_type]]
    text.tie_word_embeddings = bool(config.tie_word_embeddings)
    text.save_pretrained(directory)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(directory)
    _copy_weights(sources, directory)
    (directory / RECIPE_FILE).write_text(record)
    return directory


def prompt_ids(vocabulary: int, rows: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """int64 [rows]: text ids, the same in every engine; never one of the special tokens."""
    first = max(special_token_ids().values()) + 1
    return np.random.default_rng(seed).integers(first, vocabulary, rows)


def rows_at(ratios: Sequence[float], visual: int, text: int) -> dict[int, float]:
    """Rows of a prompt of `text` tokens and the kept ones of `visual`: rows → ratio, longest first."""
    return {text + kept_count(visual, ratio): ratio for ratio in sorted(ratios, reverse=True)}


def _copy_weights(sources: Sequence[Path], directory: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    places: dict[str, str] = {}
    for number, source in enumerate(sources, start=1):
        shard = {}
        with safe_open(source, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if found := _plain_name(name):
                    shard[found] = file.get_tensor(name)
        if shard:
            target = f"model-{number:05d}-of-{len(sources):05d}.safetensors"
            save_file(shard, directory / target, metadata={"format": "pt"})
            places |= dict.fromkeys(shard, target)
    index = {"metadata": {}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _plain_name(name: str) -> str | None:
    """The name of a weight in a language model alone; None for one of the vision side."""
    if _HEAD.match(name):
        return _HEAD.sub("lm_head.", name)
    return _LANGUAGE.sub("model.", name) if _LANGUAGE.match(name) else None


def _record(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest() + "\n"


def _is_current(directory: Path, record: str) -> bool:
    stamp = directory / RECIPE_FILE
    return stamp.is_file() and stamp.read_text() == record


def _make_room(directory: Path) -> None:
    if directory.exists() and any(directory.iterdir()) and not (directory / RECIPE_FILE).is_file():
        raise BenchError(f"{directory} exists and is not a checkpoint of this script: give another --work")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
