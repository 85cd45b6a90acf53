"""OpenVINO GenAI with its own token pruning (CDPruner), and our runtime, on one Qwen2.5-VL.

    python -m bench.peers.openvino_pruning                       tower of 8 blocks, 12 layers of 0.5B width
    python -m bench.peers.openvino_pruning --side 1008 --rounds 3

Time to first token at ratio 1, .5, .3 and .1, from decoded picture and text. VLMPipeline prunes for the
Qwen-VL families; for LLaVA it takes `pruning_ratio` and does nothing. Before times count, the prompt at
ratio 1 must have as many tokens, and the same first token of the answer, as in our runtime.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.family_models import FAMILY_MODELS, Cut, FamilyModel, ensure_family_checkpoint
from bench.images import Picture, block_image
from bench.interleave import Measurement, Variant, interleave
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.peers.base import optional
from bench.peers.openvino_genai_peer import PEER, export_ir
from bench.peers.tables import peers_environment
from bench.processors import PROMPT
from bench.results import Result, Table
from runtime import Generator, Request, load_bundle
from runtime.reuse import NO_REUSE

__all__ = ["OURS", "PipelineRun", "main", "wide_model"]

RATIOS = (1.0, 0.5, 0.3, 0.1)
OURS, THEIRS = "ours, fp32", {"OpenVINO GenAI, fp32": "f32", "OpenVINO GenAI, bf16": "bf16"}
TTFT, BEFORE = "ttft", "before the decoder"
CHECKED_TOKENS = 8
PATCH = 28  # pixels of a visual token's side: a multiple of it is not resized
# The decoder of Qwen2-0.5B, with the sections of M-RoPE for heads of 64.
WIDTHS = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
SECTIONS = [8, 12, 12]


def wide_model(layers: int) -> FamilyModel:
    """Qwen2.5-VL's tower with `layers` layers as wide as Qwen2-0.5B's, so that prefill is a real share."""
    found = FAMILY_MODELS["qwen2_5_vl"]

    def build(cut: Cut) -> tuple[Any, Any]:
        config, processor = found.build(cut)
        if cut.tiny:
            return config, processor
        settings = config.to_dict()
        text = settings["text_config"]
        text |= WIDTHS | {"num_hidden_layers": layers}
        text["rope_parameters"]["mrope_section"] = SECTIONS
        text.pop("layer_types", None)
        settings["vision_config"]["out_hidden_size"] = WIDTHS["hidden_size"]
        return type(config)(**settings), processor

    return replace(found, build=build)


class PipelineRun:
    """A VLMPipeline without prefix cache."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        """Load it; `precision` is OpenVINO's inference precision."""
        self._openvino, self._api = optional("openvino"), optional("openvino_genai")
        scheduler = self._api.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = 1 << 15  # a prompt in one piece
        properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
        if precision == "f32":
            properties["KV_CACHE_PRECISION"] = "f32"
        self._pipeline = self._api.VLMPipeline(str(folder), "CPU", scheduler_config=scheduler, **properties)

    def answer(self, prompt: str, picture: Picture, ratio: float, new: int, streamer: Any = None) -> Any:
        """Greedy; `ratio` is the fraction kept, as everywhere here: the pipeline takes percent removed."""
        options = self._api.GenerationConfig()
        options.max_new_tokens, options.ignore_eos, options.do_sample = new, True, False
        options.apply_chat_template = False  # `prompt` has it
        options.pruning_ratio = round(100 * (1 - ratio))
        pixels = self._openvino.Tensor(np.asarray(picture)[None])
        return self._pipeline.generate(prompt, images=[pixels], generation_config=options, streamer=streamer)

    def tokens(self, prompt: str, picture: Picture, new: int) -> tuple[int, list[int]]:
        """Tokens of the whole prompt, and the greedy answer; the result of a pipeline has only text."""
        found: list[int] = []
        base: Any = self._api.StreamerBase
        status_running = self._api.StreamingStatus.RUNNING

        class Collect(base):
            def write(self, tokens: int | list[int]) -> Any:
                found.extend([tokens] if isinstance(tokens, int) else tokens)
                return status_running

            def end(self) -> None: ...

        metrics = self.answer(prompt, picture, 1.0, new, Collect()).perf_metrics
        return int(metrics.get_num_input_tokens()), found

    def run(self, prompt: str, picture: Picture, ratio: float) -> Mapping[str, float]:
        """Seconds to the first token, and of them what comes before the decoder."""
        found = self.answer(prompt, picture, ratio, 1).perf_metrics
        return {
            TTFT: found.get_ttft().mean / 1e3,
            BEFORE: found.get_prepare_embeddings_duration().mean / 1e3,
        }


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers.openvino_pruning", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--depth", type=int, default=8, help="blocks of the tower, of 32 (default 8)")
    parser.add_argument("--decoder-layers", type=int, default=12, help="default 12")
    parser.add_argument("--side", type=int, default=672, help=f"pixels, a multiple of {PATCH} (default 672)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: checks the script")
    add_common_options(parser, rounds=5)
    return run_script(parser, _run, arguments)


def _run(options: argparse.Namespace) -> None:
    if options.side < PATCH or options.side % PATCH:
        raise BenchError(f"--side is {options.side}: give a multiple of {PATCH}, so that no one resizes it")
    if options.decoder_layers < 1:
        raise BenchError(f"--decoder-layers is {options.decoder_layers}: give at least 1")
    if PEER.missing():
        raise BenchError(f"{', '.join(PEER.missing())} cannot be imported: {PEER.install}")
    settings = settings_from(options)
    checkpoint, folder, bundle = _files(options, settings)
    picture = block_image(options.side, options.side, seed=0)
    generator = Generator(load_bundle(bundle, verify=False), threads=settings.threads, reuse=NO_REUSE)
    variants = [Variant(_name(OURS, ratio), partial(_ours, generator, picture, ratio)) for ratio in RATIOS]
    prompt = _prompt(checkpoint)
    rows: dict[str, dict[float, int]] = {
        OURS: {ratio: _probe(generator, picture, ratio).prompt_tokens for ratio in RATIOS}
    }
    for name, precision in THEIRS.items():
        status(f"loading {name}")
        engine = PipelineRun(folder, precision, settings.threads)
        _check(generator, engine, picture, prompt)
        rows[name] = {ratio: _rows(engine, prompt, picture, ratio) for ratio in RATIOS}
        variants += [
            Variant(_name(name, ratio), partial(engine.run, prompt, picture, ratio)) for ratio in RATIOS
        ]
    measured = interleave(
        variants, rounds=settings.rounds, warmup=settings.warmup, settle=True, progress=status
    )
    report(_result(options, rows, measured, settings), settings)


def _files(options: argparse.Namespace, settings: Settings) -> tuple[Path, Path, Path]:
    """Checkpoint, IR and bundle of one model."""
    name = "openvino-pruning-tiny" if options.tiny else "openvino-pruning"
    cut = Cut(tiny=True) if options.tiny else Cut(depth=options.depth)
    model = wide_model(options.decoder_layers)
    checkpoint = ensure_family_checkpoint(model, cut, settings.workspace.root / "checkpoints" / name)
    # The IR belongs to these weights: another model has another folder.
    shape = "tiny" if options.tiny else f"{options.depth}-{options.decoder_layers}"
    folder = settings.workspace.root / "peers" / f"{name}-{shape}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    status("exporting with optimum-intel")
    export_ir(checkpoint, folder, "image-text-to-text", ("fp32",))
    status("building the bundle")
    return checkpoint, folder, settings.workspace.bundle_of(checkpoint, name)


def _prompt(checkpoint: Path) -> str:
    from transformers import AutoTokenizer

    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return str(tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False))


def _request(picture: Picture, ratio: float, new: int) -> Request:
    return Request(PROMPT, images=(picture,), ratio=ratio, max_new_tokens=new, ignore_eos=True)


def _probe(generator: Generator, picture: Picture, ratio: float) -> Any:
    return generator.generate(_request(picture, ratio, CHECKED_TOKENS))


def _ours(generator: Generator, picture: Picture, ratio: float) -> Mapping[str, float]:
    timings = generator.generate(_request(picture, ratio, 1)).timings
    before = timings.preprocess + timings.vision + timings.embed
    return {TTFT: before + timings.prefill, BEFORE: before}


def _rows(engine: PipelineRun, prompt: str, picture: Picture, ratio: float) -> int:
    metrics = engine.answer(prompt, picture, ratio, 1).perf_metrics
    return int(metrics.get_num_input_tokens())


def _check(generator: Generator, engine: PipelineRun, picture: Picture, prompt: str) -> None:
    """The same prompt and the same answer at ratio 1.

    Raises:
        BenchError: other tokens: times would be of another computation.
    """
    ours = _probe(generator, picture, 1.0)
    count, answer = engine.tokens(prompt, picture, CHECKED_TOKENS)
    if count != ours.prompt_tokens:
        raise BenchError(
            f"OpenVINO GenAI's prompt has {count} tokens, ours {ours.prompt_tokens}: not the same work"
        )
    # The first token only: bf16 may turn from another near-tie later.
    if answer[0] != ours.token_ids[0]:
        raise BenchError(
            f"OpenVINO GenAI answers {answer}, our runtime {list(ours.token_ids)}: not the same model"
        )
    status(f"same prompt; same first tokens: {_common(answer, ours.token_ids)} of {CHECKED_TOKENS}")


def _common(one: Any, two: Any) -> int:
    same = [first == second for first, second in zip(one, two, strict=True)]
    return same.index(False) if False in same else len(same)


def _name(engine: str, ratio: float) -> str:
    return f"{engine}, ratio {ratio:g}"


def _result(
    options: argparse.Namespace, rows: dict[str, dict[float, int]], measured: Measurement, settings: Settings
) -> Result:
    lines = []
    for engine, counts in rows.items():
        for ratio in RATIOS:
            name, whole = _name(engine, ratio), _name(engine, 1.0)
            ttft, before = (measured.summary(name, figure).median for figure in (TTFT, BEFORE))
            gain = measured.paired_ratio(whole, name, TTFT)
            against = measured.paired_ratio(name, _name(OURS, ratio), TTFT)
            numbers = (str(counts[ratio]), f"{before:.3f}", f"{ttft:.3f}", f"{gain:.2f}", f"{against:.2f}")
            lines.append((name, *numbers))
    columns = ("engine", "prompt rows", "before decoder s", "first token s", "× ratio 1", "÷ ours")
    shape = "tiny" if options.tiny else f"tower {options.depth}, decoder {options.decoder_layers} layers"
    table = Table(f"Token pruning, Qwen2.5-VL ({shape}), {options.side} px", columns, tuple(lines))
    figures = {
        name: {figure: asdict(measured.summary(name, figure)) for figure in (TTFT, BEFORE)}
        for name in measured.samples
    }
    notes = (
        "CDPruner prunes by diversity and relevance between projector and decoder, our runtime inside the "
        "encoder by attention: the same count of tokens, not the same tokens.",
        "Before the decoder: preprocessing, vision, pruning and embedding. OpenVINO's bf16 is what it "
        "chooses itself where the processor has it, with a u8 KV cache.",
    )
    record = {"rows": {name: {f"{k:g}": v for k, v in counts.items()} for name, counts in rows.items()}}
    environment = peers_environment(settings.threads, PEER.packages)
    return Result(
        "peers-openvino-pruning",
        environment,
        record | {"variants": figures},
        measured.samples,
        (table,),
        notes,
    )


if __name__ == "__main__":
    sys.exit(main())
