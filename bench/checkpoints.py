"""Random-weight Hugging Face checkpoints of published configurations.

    python -m bench.checkpoints llava-onevision-0.5b bundles/bench/checkpoints/llava-onevision-0.5b
    python -m bench.checkpoints llava-1.5-7b DIR --decoder-layers 2

The directory is laid out as any checkpoint from the hub (sharded safetensors, tokenizer, processor, chat
template), so `python -m export.build --model DIR` takes it. One weight shard is in memory at a time, never
the whole model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.configurations import CONFIGURATIONS, configuration, hf_config
from bench.errors import BenchError
from bench.processors import build_processor, special_token_ids

if TYPE_CHECKING:
    import torch

__all__ = [
    "DTYPES",
    "Recipe",
    "ensure_checkpoint",
    "main",
    "weight_bytes",
    "write_checkpoint",
    "write_model",
]

RECIPE_FILE = "bench.recipe"  # not .json: exporters copy every JSON file of a checkpoint
SHARD_BYTES = 1 << 30
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """All that decides the content of a checkpoint. `decoder_layers` None means as published."""

    name: str
    decoder_layers: int | None = None
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        configuration(self.name, self.decoder_layers)
        if self.dtype not in DTYPES:
            raise BenchError(
                f"weights cannot be written as {self.dtype!r}: choose one of {', '.join(DTYPES)}"
            )


def ensure_checkpoint(recipe: Recipe, directory: Path) -> Path:
    """The checkpoint of `recipe` at `directory`: the one there if its record is the same, else a new one."""
    stamp = directory / RECIPE_FILE
    if stamp.is_file() and json.loads(stamp.read_text()) == _record(recipe):
        return directory
    return write_checkpoint(recipe, directory)


def write_checkpoint(recipe: Recipe, directory: Path) -> Path:
    """Write the checkpoint beside `directory` and rename it into place.

    Raises:
        BenchError: `directory` exists and was not written by this function.
    """
    if directory.exists() and any(directory.iterdir()) and not (directory / RECIPE_FILE).is_file():
        raise BenchError(f"{directory} exists and is not a checkpoint of this script: give another directory")
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    found = configuration(recipe.name, recipe.decoder_layers)
    config = hf_config(found, special_token_ids())
    write_model(config, build_processor(found), partial, seed=recipe.seed, dtype=recipe.dtype)
    (partial / RECIPE_FILE).write_text(json.dumps(_record(recipe), indent=2) + "\n")
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)
    return directory


def _record(recipe: Recipe) -> dict[str, Any]:
    """The recipe, and a digest of the published configuration that it names."""
    found = asdict(configuration(recipe.name, recipe.decoder_layers))
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return asdict(recipe) | {"configuration": digest}


def weight_bytes(directory: Path) -> int:
    """Bytes of all weight files of a checkpoint."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def write_model(
    config: Any, processor: Any, directory: Path, *, seed: int = 0, dtype: str = "float32"
) -> None:
    """Write a model of random weights and its processor into an existing directory.

    Args:
        config: of transformers; `architectures` names the class of the model.
        processor: anything with `save_pretrained`.
        directory: where the files go.
        seed: decides the weights.
        dtype: of the weights, one of `DTYPES`.
    """
    config.dtype = dtype
    config.save_pretrained(directory)
    processor.save_pretrained(directory)
    _write_generation_config(directory)
    _write_weights(config, seed, dtype, directory)


def _write_generation_config(directory: Path) -> None:
    from transformers import GenerationConfig

    ids = special_token_ids()
    GenerationConfig(
        bos_token_id=ids["bos"], eos_token_id=ids["eos"], pad_token_id=ids["pad"], do_sample=False
    ).save_pretrained(directory)


def _write_weights(config: Any, seed: int, dtype: str, directory: Path) -> None:
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    total = 0
    for number, shard in enumerate(_shards(config, seed, dtype), start=1):
        save_file(shard, directory / f"shard-{number}", metadata={"format": "pt"})
        shards.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        # The count of shards is part of every file name, and known only now.
        final = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"shard-{number}").rename(directory / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(config: Any, seed: int, dtype: str) -> Iterator[dict[str, torch.Tensor]]:
    """Groups of named random tensors, each group about `SHARD_BYTES`."""
    import torch
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    generator = torch.Generator().manual_seed(seed)
    shard: dict[str, torch.Tensor] = {}
    size = 0
    # A tied LM head is the embedding's own parameter, so it is listed once and written once.
    for name, parameter in model.named_parameters():
        tensor = _random_tensor(name, parameter.shape, generator).to(getattr(torch, dtype))
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Random values of a size that keeps activations near unit variance through any depth.

    Matrices have variance 1/fan-in, so attention logits vary by about one unit: softmax rows are neither
    uniform (scores would all be ties) nor one-hot. Biases and norm weights are off 0 and 1, so that losing
    one shows.
    """
    import torch

    noise = torch.randn(shape, generator=generator)
    if ("norm" in name or ".ln_" in name) and name.endswith("weight"):
        return noise.mul_(0.1).add_(1.0)
    if name.endswith("bias"):
        return noise.mul_(0.05)
    if name.endswith((".lambda_1", ".lambda_2")):
        return noise.mul_(0.1).add_(0.5)  # layer scale: near 0, a layer would add nothing to its input
    if noise.dim() == 1 or "position_embedding" in name or "embed_tokens" in name:
        return noise.mul_(0.02)
    fan_in = noise[0].numel()
    return noise.mul_(fan_in**-0.5)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.checkpoints", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("name", choices=sorted(CONFIGURATIONS), help="published configuration")
    parser.add_argument("output", type=Path, help="directory to write")
    parser.add_argument(
        "--decoder-layers", type=int, help="keep this many decoder layers (default: as published)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights on disk")
    options = parser.parse_args(arguments)
    try:
        recipe = Recipe(options.name, options.decoder_layers, options.seed, options.dtype)
        written = write_checkpoint(recipe, options.output)
    except (BenchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"{written}: {weight_bytes(written) / 1e9:.2f} GB of {options.dtype} weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
