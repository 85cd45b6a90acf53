"""Find, check and load a Hugging Face checkpoint; what is cheap is checked before anything is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from export.errors import CheckpointError
from export.families import Family, family_for
from export.options import DEFAULT_MODEL

__all__ = [
    "Checkpoint",
    "load_config",
    "load_model",
    "load_processor",
    "matrix_dtypes",
    "open_checkpoint",
    "stored_tensors",
    "weight_files",
]

_ROOT = Path(__file__).resolve().parent.parent
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_INDICES = {"I64", "I32", "BOOL"}
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_VIDEO = "video_processor"
_SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
_HUB_FILES = [*_SMALL_FILES, "*.safetensors"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory that looks complete; nothing is loaded yet."""

    path: Path
    source: str
    name: str
    family: Family


def open_checkpoint(source: str, *, weights: bool = True) -> Checkpoint:
    """Check a directory (or download a hub id) and find its family.

    Args:
        source: a checkpoint directory, or a hub id such as `llava-hf/llava-1.5-7b-hf`.
        weights: whether they are needed; else they are neither downloaded nor looked for.

    Raises:
        CheckpointError: not there, not a supported model, or files missing or damaged.
    """
    path = _directory(source, _HUB_FILES if weights else _SMALL_FILES)
    config = _read_json(path / "config.json")
    family = family_for(config)
    if weights:
        _check_weights(path)
    is_directory = Path(source).expanduser().is_dir()
    name = path.name if is_directory or source == DEFAULT_MODEL else source.split("/")[-1]
    # Absolute: a bundle finds its checkpoint from any working directory, and never on the hub instead.
    recorded = str(path) if is_directory and source != DEFAULT_MODEL else source
    return Checkpoint(path, recorded, name, family)


def load_config(checkpoint: Checkpoint) -> Any:
    """The transformers config of a checkpoint.

    Raises:
        CheckpointError: transformers cannot read it.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(checkpoint.path)
    except Exception as error:  # strict validation raises its own types
        raise CheckpointError(
            f"{checkpoint.path / 'config.json'} is not a usable configuration ({_one_line(error)}): save the "
            "model again"
        ) from error


def load_processor(checkpoint: Checkpoint) -> Any:
    """The processor, with the PIL image backend: torchvision resizes differently, and the runtime has
    neither. Its part for videos, which needs torchvision, is left out.

    Raises:
        CheckpointError: tokenizer or processor files are missing or unusable.
    """
    from transformers import AutoProcessor

    try:
        kind = _video_processor_class(checkpoint) or AutoProcessor
        processor = kind.from_pretrained(checkpoint.path, backend="pil")
    except Exception as error:  # missing files, bad JSON and missing packages all arrive here
        raise CheckpointError(
            f"the processor of {checkpoint.path} cannot be loaded ({_one_line(error)}): save it into the "
            "checkpoint with processor.save_pretrained"
        ) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise CheckpointError(
            f"{checkpoint.path} has a {type(processor).__name__} instead of a processor for text and images: "
            "save the model's processor into it with processor.save_pretrained"
        )
    if not getattr(processor.tokenizer, "is_fast", False):
        raise CheckpointError(
            f"the tokenizer of {checkpoint.path} ({type(processor.tokenizer).__name__}) has no fast form, "
            "and the runtime reads tokenizer.json only: convert it with tokenizer.save_pretrained of a fast "
            "tokenizer"
        )
    return processor


def _video_processor_class(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own processor class without its part for videos; None where it has no such part."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    files = [checkpoint.path / name for name in _PROCESSOR_FILES]
    names = [_read_json(file).get("processor_class") for file in files if file.is_file()]
    names.append(PROCESSOR_MAPPING_NAMES.get(checkpoint.family.model_type))
    name = next((name for name in names if isinstance(name, str)), "")
    base: Any = getattr(transformers, name, None)
    if base is None or _VIDEO not in base.get_attributes():
        return None
    module = sys.modules[base.__module__]
    if getattr(module, "num2words", _VIDEO) is None:
        module.num2words = str  # type: ignore[attr-defined]  # SmolVLM wants it at once, and uses it for videos

    class WithoutVideos(base):
        video_processor = SimpleNamespace(num_frames=1, fps=1)  # some hand these on, videos or not

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in base.get_attributes() if name != _VIDEO]

        @classmethod
        def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
            found: list[Any] = super()._get_arguments_from_pretrained(*args, **kwargs)
            found.insert(base.get_attributes().index(_VIDEO), None)
            return found

    return WithoutVideos


def load_model(checkpoint: Checkpoint) -> Any:
    """The model in float32, in eval mode, on the CPU; matrices that are stored in 16 bits stay so until they
    are used (`export.stored_weights`).

    Raises:
        CheckpointError: weights are missing, of the wrong shape, or unreadable.
    """
    import torch
    import transformers

    from export.stored_weights import load_stored, stored_dtype

    architecture = getattr(transformers, checkpoint.family.architecture)
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    dtype = stored_dtype(weight_files(checkpoint.path))
    try:
        if dtype is None:
            model, info = architecture.from_pretrained(checkpoint.path, dtype=torch.float32, **options)
        else:
            model, info = load_stored(architecture, checkpoint.path, dtype, **options)
    except Exception as error:
        raise CheckpointError(
            f"the weights of {checkpoint.path} cannot be loaded ({_one_line(error)}): copy or download the "
            "checkpoint again"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} lacks {len(missing)} weights that its config.json asks for, e.g. "
            f"{missing[0]}: save the whole model with save_pretrained"
        )
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, found, wanted = mismatched[0]
        raise CheckpointError(
            f"{checkpoint.path} has {len(mismatched)} weights of another shape than its config.json asks "
            f"for, e.g. {name} is {list(found)} instead of {list(wanted)}: save config and weights together "
            "with save_pretrained"
        )
    return model.eval()


def _directory(source: str, hub_files: list[str]) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    if source == DEFAULT_MODEL and (_ROOT / source).is_dir():
        return _ROOT / source
    if path.exists():
        raise CheckpointError(
            f"{source} is a file, but a checkpoint is a directory with config.json and weights: give that "
            "directory"
        )
    if source == DEFAULT_MODEL or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise CheckpointError(
            f"there is no checkpoint directory {source}: give --model a directory with config.json and "
            "weights, or a hub id owner/name"
        )
    return _download(source, hub_files)


def _download(hub_id: str, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=files))
    except Exception as error:  # no network, no such id, no permission: the reason is in the first line
        raise CheckpointError(
            f"{hub_id} is no directory here and could not be fetched from the hub ({_one_line(error)}): "
            f"where there is a network, run `hf download {hub_id} --local-dir DIR` and give --model DIR"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}: give the directory that save_pretrained wrote, with "
            "config.json and weights in it"
        ) from error
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is not readable JSON ({_one_line(error)}): copy or download the checkpoint again"
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path} holds a {type(data).__name__} instead of an object: copy or download the checkpoint "
            "again"
        )
    return data


def _check_weights(path: Path) -> None:
    for file in weight_files(path):
        _check_safetensors(file)


def weight_files(path: Path) -> list[Path]:
    """The weight files of a checkpoint; all are there.

    Raises:
        CheckpointError: there is none, or the index names one that is missing.
    """
    if (path / _INDEX).exists():
        weight_map = _read_json(path / _INDEX).get("weight_map")
        files = weight_map.values() if isinstance(weight_map, dict) else ()
        shards = sorted({name for name in files if isinstance(name, str)})
        if not shards:
            raise CheckpointError(
                f"{path / _INDEX} names no weight file: save the model again with save_pretrained"
            )
        for shard in shards:
            if not (path / shard).exists():
                raise CheckpointError(
                    f"{path / _INDEX} names {shard}, which is missing ({len(shards)} weight files are "
                    f"needed): copy or download it into {path}"
                )
    elif (path / _SINGLE).exists():
        shards = [_SINGLE]
    else:
        other = sorted(
            file.name for pattern in ("*.bin", "*.gguf", "*.pt", "*.pth") for file in path.glob(pattern)
        )
        found = f" ({other[0]} is of another format)" if other else ""
        raise CheckpointError(
            f"{path} has no {_SINGLE}{found}: give a checkpoint saved with "
            "save_pretrained(safe_serialization=True)"
        )
    return [path / shard for shard in shards]


def stored_tensors(file: Path) -> dict[str, dict[str, Any]]:
    """`dtype` ("F16" …) and `shape` of every tensor of a safetensors file, by name; no weight is read."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def matrix_dtypes(files: Iterable[Path]) -> set[str]:
    """dtypes of all matrices in safetensors files; tables of indices, such as the position ids that old
    checkpoints hold, are none."""
    entries = (entry for file in files for entry in stored_tensors(file).values())
    return {entry["dtype"] for entry in entries if len(entry["shape"]) > 1} - _INDICES


def _check_safetensors(path: Path) -> None:
    """Compare a file's header with its size; no weight is read (format: 8 bytes length, JSON, data)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if 8 + length <= size else b""
    try:
        entries = json.loads(header)
        end = max(
            (int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"),
            default=0,
        )
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        hint = " (it is a git-lfs pointer)" if _is_lfs_pointer(path) else ""
        raise CheckpointError(
            f"{path} is not a safetensors file, its header is damaged{hint}: copy or download it again"
        ) from error
    if size < 8 + length + end:
        raise CheckpointError(
            f"{path} is truncated: it has {size} bytes of the {8 + length + end} that its header announces; "
            "copy or download it again"
        )


def _is_lfs_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(20).startswith(b"version https://git-")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
