"""What a run says: speed-ups beside those that multiply-adds predict, memory beside what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.costs import ModelShape
from bench.interleave import Measurement
from bench.vlm.base import EMBED, PREFILL, TTFT, VISION
from bench.vlm.rig import Entry, figure_name
from runtime import contract
from runtime.bundle import Bundle
from runtime.decoder import PREFILL_ROWS

__all__ = ["VlmRun", "activation_bytes", "weight_bytes"]

_FLOAT = 4  # bytes of an activation


@dataclass(frozen=True)
class VlmRun:
    """What was measured.

    Attributes:
        name: of the configuration.
        entries: the engines, in the order of tables.
        measured: their samples; figures are named by `figure_name`.
        shape: multiply-adds.
        keeps: ratio → visual tokens kept; `text` is the number of other prompt tokens.
        selection: ratio → seconds of scoring and selection on ONNX Runtime, in a profiled run of its own.
        memory: (engine, ratio) → bytes of weights, KV cache and largest activations, of engines that run a
            bundle.
    """

    name: str
    entries: Sequence[Entry]
    measured: Measurement
    shape: ModelShape
    keeps: Mapping[float, int]
    text: int
    selection: Mapping[float, float]
    memory: Mapping[tuple[str, float], tuple[int, int, int]]

    @property
    def good(self) -> list[Entry]:
        """Engines whose times count."""
        return [entry for entry in self.entries if not entry.state]

    def values(self, engine: str, figure: str, ratio: float) -> list[float] | None:
        """Samples by round; None where an engine has no such figure."""
        return self.measured.samples[engine].get(figure_name(figure, ratio))

    def seconds(self, engine: str, figure: str, ratio: float) -> float | None:
        """Median over rounds."""
        found = self.values(engine, figure, ratio)
        return None if found is None else median(found)

    def speedup(self, engine: str, figure: str, ratio: float) -> float | None:
        """Time at ratio 1 ÷ time at `ratio`, the median over rounds."""
        whole, part = self.values(engine, figure, 1.0), self.values(engine, figure, ratio)
        return None if whole is None or part is None else _paired(whole, part)

    def predicted(self, engine: str, figure: str, ratio: float) -> float | None:
        """The speed-up if each stage took as long per multiply-add as at ratio 1 of the same round."""
        vision = self._macs(VISION, ratio) / self._macs(VISION, 1.0)
        prefill = self._macs(PREFILL, ratio) / self._macs(PREFILL, 1.0)
        if figure == PREFILL:
            return 1 / prefill
        stages = [self.values(engine, name, 1.0) for name in (VISION, EMBED, PREFILL)]
        whole = self.values(engine, TTFT, 1.0)
        if whole is None or stages[0] is None or stages[2] is None:
            return None
        embed = stages[1] or [0.0] * len(whole)
        scaled = [
            one * vision + two + three * prefill
            for one, two, three in zip(stages[0], embed, stages[2], strict=True)
        ]
        return _paired(whole, scaled)

    def achieved(self, engine: str, figure: str, ratio: float) -> float | None:
        """Measured speed-up ÷ predicted speed-up."""
        found, predicted = self.speedup(engine, figure, ratio), self.predicted(engine, figure, ratio)
        return None if found is None or predicted is None else found / predicted

    def against(self, engine: str, base: str, figure: str, ratio: float) -> float | None:
        """Time of `base` ÷ time of `engine` at one ratio, the median over rounds: above 1 is faster."""
        one, two = self.values(base, figure, ratio), self.values(engine, figure, ratio)
        return None if one is None or two is None else _paired(one, two)

    def over_floor(self, engine: str, ratio: float) -> float | None:
        """Peak resident memory ÷ (weights + KV cache + largest activations)."""
        parts, entry = self.memory.get((engine, ratio)), self._entry(engine)
        peak = entry.answers.get(ratio, {}).get("peak_rss")
        return None if parts is None or peak is None else peak / sum(parts)

    def _entry(self, engine: str) -> Entry:
        return next(entry for entry in self.entries if entry.name == engine)

    def _macs(self, stage: str, ratio: float) -> int:
        keep = self.keeps[ratio] if ratio < 1.0 else None
        if stage == VISION:
            return self.shape.vision_stage(keep)
        return self.shape.prefill_stage(self.text, keep)


def _paired(one: Sequence[float], two: Sequence[float]) -> float:
    return median(first / second for first, second in zip(one, two, strict=True))


def weight_bytes(bundle: Bundle, decoder: str, pruned: bool) -> int:
    """Bytes of the weights that a request reads, shared ones once."""
    import onnx_ir as ir

    vision = contract.VISION_ENCODER_FOPRU if pruned else contract.VISION_ENCODER
    places: dict[Any, int] = {}
    for graph in (vision, contract.EMBED_TOKENS, decoder):
        for name, value in ir.load(bundle.graph(graph)).graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                continue
            if isinstance(tensor, ir.ExternalTensor):
                places[str(Path(tensor.path).resolve()), tensor.offset] = tensor.nbytes
            else:
                places[graph, name] = tensor.nbytes
    return sum(places.values())


def activation_bytes(config: Any, shape: ModelShape, prompt: int) -> int:
    """The larger of what a layer of the tower and one of the decoder's prefill hold at once, in float32.

    The tower: Q, K, V and output of attention with the logits and probabilities of all heads, or its MLP's
    input, output and inside before and after the activation. The decoder, in chunks of `PREFILL_ROWS`: input
    and output of its MLP, gate, up and their product; and the logits of one position.
    """
    vision, rows = config.vision_config, shape.vision.rows
    attention = 2 * vision.num_attention_heads * rows**2 + 4 * rows * vision.hidden_size
    tower = max(attention, rows * (2 * vision.hidden_size + 2 * vision.intermediate_size))
    decoder, chunk = shape.decoder, min(prompt, PREFILL_ROWS)
    prefill = chunk * (2 * decoder.width + 3 * decoder.mlp) + decoder.vocabulary
    return _FLOAT * max(tower, prefill)
