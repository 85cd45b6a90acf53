"""A model of the published size on a small machine: its build, and one answer with all visual tokens and with
some.

    python -m bench.large_model                  LLaVA-1.5-7B shapes, 14 GB of float16, int4 decoder
    python -m bench.large_model --model tiny

The build, and the answer at each ratio, are processes of their own, whose memory is watched until they end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.checkpoints import Recipe, ensure_checkpoint
from bench.configurations import CONFIGURATIONS
from bench.environment import describe_environment
from bench.errors import BenchError
from bench.memory import ChildUsage, run_measured
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table
from bench.workspace import BuildCost, measure_build
from runtime.bundle import Bundle, load_bundle
from runtime.decoder import PREFILL_ROWS

__all__ = ["Answer", "answer", "largest_activation", "main", "measure_large_model", "read_bytes"]

PRECISION = "decoder=int4"
RATIOS = (1.0, 0.3)
NEW_TOKENS = 32
_FLOAT = 4  # bytes of an activation


@dataclass(frozen=True)
class Answer:
    """One answer: what the child said, what its process used, and what it cannot do without.

    Attributes:
        ratio: fraction of the visual tokens that was kept.
        said: what `bench.one_answer` printed.
        usage: of its process.
        weights: bytes of weights that its graphs read.
        activation: bytes of the largest activation, by arithmetic.
    """

    ratio: float
    said: dict[str, Any]
    usage: ChildUsage
    weights: int
    activation: int

    @property
    def floor(self) -> int:
        """Weights, one KV cache and the largest activation."""
        return int(self.weights + self.said["kv_bytes"] + self.activation)

    @property
    def token_seconds(self) -> float:
        """Seconds per token behind the first."""
        return float(self.said["timings"]["decode"]) / (len(self.said["token_ids"]) - 1)

    def figures(self) -> dict[str, Any]:
        """The numbers to quote."""
        said, times = self.said, self.said["timings"]
        return {
            "visual_tokens": sum(said["visual_tokens_after"]),
            "prompt_tokens": said["prompt_tokens"],
            "kv_bytes": said["kv_bytes"],
            "kv_bytes_allocated": said["kv_bytes_allocated"],
            "peak_rss_bytes": self.usage.peak_rss_bytes,
            "peak_anonymous_bytes": self.usage.peak_anonymous_bytes,
            "file_bytes_at_end": said["file_bytes"],
            "weight_bytes_read": self.weights,
            "largest_activation_bytes": self.activation,
            "peak_rss_to_floor": self.usage.peak_rss_bytes / self.floor,
            "seconds": {
                "load": times["load"],
                "vision": times["vision"],
                "prefill": times["prefill"],
                "per_token": self.token_seconds,
            },
        }


def measure_large_model(name: str, settings: Settings) -> Result:
    """Build the bundle of one configuration from 16 bits, and answer with it."""
    root = settings.workspace.root
    status(f"writing the float16 checkpoint of {name}")
    checkpoint = ensure_checkpoint(Recipe(name, dtype="float16"), root / "checkpoints" / f"{name}-float16")
    # Not `NAME-int4`: by that name `bench.vlm` keeps the bundle of the float32 checkpoint.
    target = root / f"{name}-float16-int4"
    status(f"building {target.name}")
    cost = measure_build(checkpoint, target, settings.workspace.ratio, PRECISION)
    answers = []
    for ratio in RATIOS:
        status(f"answering with ratio {ratio}")
        answers.append(answer(target, ratio, settings.threads))
    return _result(name, cost, answers, load_bundle(target, verify=False), settings.threads)


def answer(bundle: Path, ratio: float, threads: int) -> Answer:
    """One answer of `NEW_TOKENS` tokens in a process of its own.

    Raises:
        BenchError: it failed; its own message is on stderr.
    """
    arguments = [
        str(bundle),
        "--ratio",
        str(ratio),
        "--new-tokens",
        str(NEW_TOKENS),
        "--threads",
        str(threads),
    ]
    from transformers import AutoConfig

    usage = run_measured([sys.executable, "-m", "bench.one_answer", *arguments])
    if usage.returncode != 0:
        raise BenchError(
            f"the answer of {bundle} at ratio {ratio} ended with status {usage.returncode}: see its message "
            "above"
        )
    said = json.loads(usage.stdout)
    found = load_bundle(bundle, verify=False)
    weights = read_bytes(found.graph(graph) for graph in said["graphs"])
    activation = largest_activation(AutoConfig.from_pretrained(bundle), said["prompt_tokens"])
    return Answer(ratio, said, usage, weights, activation)


def read_bytes(graphs: Iterable[Path]) -> int:
    """Bytes of the weights that graphs read from files, those that two of them share once."""
    import onnx_ir as ir

    places = {
        (Path(tensor.path).resolve(), tensor.offset, tensor.length)
        for graph in graphs
        for tensor in (value.const_value for value in ir.load(graph).graph.initializers.values())
        if isinstance(tensor, ir.ExternalTensor)
    }
    return sum(length or 0 for _, _, length in places)


def largest_activation(config: Any, prompt_tokens: int) -> int:
    """Bytes of the largest float32 tensor between two products of a LLaVA: scores, or an MLP's inside.

    Args:
        config: a `LlavaConfig`.
        prompt_tokens: of the prompt, visual ones included, which is prefilled in chunks.
    """
    vision, text = config.vision_config, config.text_config
    rows = (vision.image_size // vision.patch_size) ** 2 + (vision.model_type == "clip_vision_model")
    chunk = min(prompt_tokens, PREFILL_ROWS)
    numbers = (
        vision.num_attention_heads * rows**2,
        vision.intermediate_size * rows,
        text.num_attention_heads * chunk * prompt_tokens,
        text.intermediate_size * chunk,
        text.vocab_size,
    )
    return _FLOAT * max(numbers)


def _result(name: str, cost: BuildCost, answers: list[Answer], bundle: Bundle, threads: int) -> Result:
    build = {
        "command": cost.command,
        "checkpoint_bytes": cost.weight_bytes,
        "bundle_bytes": cost.bundle_bytes,
        "seconds": cost.usage.seconds,
        "peak_rss_bytes": cost.usage.peak_rss_bytes,
        "peak_anonymous_bytes": cost.usage.peak_anonymous_bytes,
        "steps": cost.steps,
    }
    parity = bundle.manifest.parity or {}
    figures = {
        "model": name,
        "precision": PRECISION,
        "build": build,
        "loss": parity.get("loss"),
        "answers": {str(found.ratio): found.figures() for found in answers},
    }
    return Result(
        f"large-{name}",
        describe_environment(threads),
        figures,
        {"answers": [found.said for found in answers]},
        (_build_table(name, cost), _answer_table(answers)),
        (
            f"Measured: `{cost.command}`, and one answer of {NEW_TOKENS} tokens in a process for each ratio.",
            "Peak RSS counts pages of memory-mapped weight files too, which the system can drop; anonymous "
            "memory is what it cannot.",
            "Floor: weights that the opened graphs read, one KV cache, and the largest activation by "
            "arithmetic.",
            "Weights are random: times and bytes are those of the published model, answers and losses are "
            "not.",
        ),
    )


def _build_table(name: str, cost: BuildCost) -> Table:
    usage = cost.usage
    anonymous = "" if usage.peak_anonymous_bytes is None else f"{usage.peak_anonymous_bytes / 1e9:.2f}"
    rows = [(step, f"{seconds:.1f}") for step, seconds in cost.steps.items()]
    rows += [("whole process", f"{usage.seconds:.1f}"), ("peak RSS GB", f"{usage.peak_rss_bytes / 1e9:.2f}")]
    rows += [("peak anonymous GB", anonymous)]
    title = (
        f"Build of {name}, {PRECISION}: {cost.weight_bytes / 1e9:.2f} GB of float16 weights → "
        f"{cost.bundle_bytes / 1e9:.2f} GB"
    )
    return Table(title, ("step", "seconds"), tuple(rows))


def _answer_table(answers: list[Answer]) -> Table:
    columns = (
        *("ratio", "visual", "prompt", "KV MB", "allocated", "peak RSS GB", "anonymous", "file", "÷ floor"),
        *("vision s", "prefill s", "ms/token"),
    )
    return Table(f"One answer of {NEW_TOKENS} tokens", columns, tuple(map(_answer_row, answers)))


def _answer_row(found: Answer) -> tuple[str, ...]:
    said, times = found.said, found.said["timings"]
    anonymous, file = found.usage.peak_anonymous_bytes, said["file_bytes"]
    return (
        f"{found.ratio}",
        str(sum(said["visual_tokens_after"])),
        str(said["prompt_tokens"]),
        f"{said['kv_bytes'] / 1e6:.1f}",
        f"{said['kv_bytes_allocated'] / 1e6:.1f}",
        f"{found.usage.peak_rss_bytes / 1e9:.2f}",
        "" if anonymous is None else f"{anonymous / 1e9:.2f}",
        "" if file is None else f"{file / 1e9:.2f}",
        f"{found.usage.peak_rss_bytes / found.floor:.2f}",
        f"{times['vision']:.2f}",
        f"{times['prefill']:.2f}",
        f"{1e3 * found.token_seconds:.0f}",
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.large_model", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", choices=sorted(CONFIGURATIONS), default="llava-1.5-7b")
    add_common_options(parser, rounds=None)

    def body(options: argparse.Namespace) -> None:
        settings = settings_from(options)
        report(measure_large_model(options.model, settings), settings)

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())
