"""Time to first token by ratio, against what multiply-adds predict, and transformers in the same run.

    python -m bench.ttft                          LLaVA-OneVision-0.5B shapes, ratios 1, .5, .3, .1
    python -m bench.ttft --model tiny --rounds 3

Time to first token = vision encoder + embedding + prefill + choice of the token. Image preprocessing is
measured and shown apart: it is the same work for every variant. transformers runs unpruned, float32, sdpa,
on the same pixel values and prompt, with logits for the last position only.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench.configurations import CONFIGURATIONS
from bench.costs import ModelShape, gmac, model_shape
from bench.environment import describe_environment
from bench.images import Picture, noise_images
from bench.interleave import Measurement, Variant, interleave
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.plot import draw_ttft
from bench.processors import PROMPT
from bench.results import Result, Table
from bench.workspace import single_layout
from runtime import Generator, Request, load_bundle
from runtime.counts import kept_count
from runtime.reuse import NO_REUSE

__all__ = ["RATIOS", "TtftRun", "main", "measure_ttft"]

RATIOS = (1.0, 0.5, 0.3, 0.1)
TTFT, VISION, EMBED, PREFILL, PREPROCESS = "ttft", "vision", "embed", "prefill", "preprocess"
REFERENCE = "transformers"


@dataclass(frozen=True)
class TtftRun:
    """What was measured. `keeps`: ratio → visual tokens kept; `text`: the number of other prompt tokens.

    `kv_bytes` are those of one copy of the KV cache, `kv_allocated` what the runtime really allocated.
    """

    shape: ModelShape
    keeps: dict[float, int]
    text: int
    kv_bytes: dict[float, int]
    kv_allocated: dict[float, int]
    measured: Measurement

    def vision_macs(self, ratio: float) -> int:
        """Multiply-adds of the vision stage; at ratio 1 the runtime runs the unpruned encoder."""
        return self.shape.vision_stage(self._keep(ratio))

    def prefill_macs(self, ratio: float) -> int:
        """Multiply-adds of the prefill."""
        return self.shape.prefill_stage(self.text, self._keep(ratio))

    def predicted_seconds(self, ratio: float) -> float:
        """Time at `ratio` if each stage took as long per multiply-add as at ratio 1: median over rounds."""
        return median(self._predicted(ratio))

    def predicted_speedup(self, ratio: float) -> float:
        """Measured time at ratio 1 ÷ the predicted time at `ratio`: the median over rounds."""
        whole = self.measured.values(_variant(1.0), TTFT)
        return median(one / two for one, two in zip(whole, self._predicted(ratio), strict=True))

    def achieved(self, ratio: float) -> float:
        """Measured speed-up ÷ predicted speed-up."""
        return self.speedup(ratio) / self.predicted_speedup(ratio)

    def speedup(self, ratio: float) -> float:
        """Measured time at ratio 1 ÷ time at `ratio`: the median over rounds."""
        return self.measured.paired_ratio(_variant(1.0), _variant(ratio), TTFT)

    def speedup_quartiles(self, ratio: float) -> tuple[float, float]:
        """Lower and upper quartile of the same over rounds."""
        return self.measured.paired_quartiles(_variant(1.0), _variant(ratio), TTFT)

    def _keep(self, ratio: float) -> int | None:
        return self.keeps[ratio] if ratio < 1.0 else None

    def _predicted(self, ratio: float) -> list[float]:
        """Per round: each stage at ratio 1 in proportion to its own multiply-adds, embedding as it is."""
        vision = self.vision_macs(ratio) / self.vision_macs(1.0)
        prefill = self.prefill_macs(ratio) / self.prefill_macs(1.0)
        stages = (self.measured.values(_variant(1.0), figure) for figure in (VISION, EMBED, PREFILL))
        return [one * vision + two + three * prefill for one, two, three in zip(*stages, strict=True)]


def measure_ttft(name: str, settings: Settings, *, reference: bool) -> tuple[Result, TtftRun]:
    """Measure one configuration; `reference` adds transformers to the rounds."""
    from transformers import AutoConfig

    bundle = load_bundle(settings.workspace.bundle(name), verify=False)
    checkpoint = settings.workspace.checkpoint(name)
    layout = single_layout(bundle)
    tokens = layout.tokens
    (picture,) = noise_images(1, layout.image_size[0], seed=0)
    status("loading the bundle")
    generator = Generator(bundle, threads=settings.threads, reuse=NO_REUSE)
    probes = {ratio: generator.generate(_request(picture, ratio)) for ratio in RATIOS}
    variants = [
        Variant(_variant(ratio), partial(_run_bundle, generator, _request(picture, ratio)))
        for ratio in RATIOS
    ]
    if reference:
        status("loading transformers")
        variants.append(Variant(REFERENCE, _reference(checkpoint, picture, settings.threads)))
    measured = interleave(
        variants, rounds=settings.rounds, warmup=settings.warmup, settle=True, progress=status
    )
    keeps = {ratio: kept_count(tokens, ratio) for ratio in RATIOS}
    shape = model_shape(AutoConfig.from_pretrained(checkpoint))
    text = probes[1.0].prompt_tokens - tokens - layout.prefix_tokens
    kv_bytes = {ratio: probe.kv_bytes for ratio, probe in probes.items()}
    kv_allocated = {ratio: probe.kv_bytes_allocated for ratio, probe in probes.items()}
    run = TtftRun(shape, keeps, text, kv_bytes, kv_allocated, measured)
    return _result(name, run, settings.threads), run


def _request(picture: Picture, ratio: float) -> Request:
    return Request(PROMPT, images=(picture,), ratio=ratio, max_new_tokens=1, ignore_eos=True)


def _run_bundle(generator: Generator, request: Request) -> Mapping[str, float]:
    timings = generator.generate(request).timings
    return {
        TTFT: timings.vision + timings.embed + timings.prefill,
        VISION: timings.vision,
        EMBED: timings.embed,
        PREFILL: timings.prefill,
        PREPROCESS: timings.preprocess,
    }


def _reference(checkpoint: Path, picture: Picture, threads: int) -> Callable[[], Mapping[str, float]]:
    """transformers' forward pass over image and prompt; the vision part ends where the projector returns."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    torch.set_num_threads(threads)
    model = LlavaForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[picture], text=prompt, return_tensors="pt")
    projected: list[float] = []
    model.model.multi_modal_projector.register_forward_hook(lambda *_: projected.append(time.perf_counter()))

    def run() -> Mapping[str, float]:
        projected.clear()
        start = time.perf_counter()
        with torch.inference_mode():
            int(model(**inputs, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())
        end = time.perf_counter()
        return {TTFT: end - start, VISION: projected[0] - start, PREFILL: end - projected[0]}

    return run


def _variant(ratio: float) -> str:
    return f"ratio {ratio:g}"


def _result(name: str, run: TtftRun, threads: int) -> Result:
    rows: list[tuple[str, ...]] = []
    by_ratio: dict[str, Any] = {}
    for ratio, keep in run.keeps.items():
        found = {
            figure: run.measured.summary(_variant(ratio), figure) for figure in (TTFT, VISION, EMBED, PREFILL)
        }
        by_ratio[f"{ratio:g}"] = {
            "visual_tokens": keep,
            "prompt_tokens": run.text + keep + run.shape.vision.prefix,
            "ttft_seconds": found[TTFT].median,
            "vision_seconds": found[VISION].median,
            "prefill_seconds": found[PREFILL].median,
            "speedup": run.speedup(ratio),
            "speedup_quartiles": run.speedup_quartiles(ratio),
            "speedup_predicted": run.predicted_speedup(ratio),
            "predicted_seconds": run.predicted_seconds(ratio),
            "achieved": run.achieved(ratio),
            "vision_gmac": gmac(run.vision_macs(ratio)),
            "prefill_gmac": gmac(run.prefill_macs(ratio)),
            "kv_bytes": run.kv_bytes[ratio],
            "kv_bytes_allocated": run.kv_allocated[ratio],
        }
        lower, upper = run.speedup_quartiles(ratio)
        rows.append(
            (
                _variant(ratio),
                str(keep),
                f"{found[TTFT].median:.3f}",
                f"{found[TTFT].minimum:.3f} to {found[TTFT].maximum:.3f}",
                f"{found[VISION].median:.3f}",
                f"{found[PREFILL].median:.3f}",
                f"{run.speedup(ratio):.2f}",
                f"{lower:.2f} to {upper:.2f}",
                f"{run.predicted_speedup(ratio):.2f}",
                f"{run.achieved(ratio):.2f}",
            )
        )
    figures: dict[str, Any] = {"model": name, "text_tokens": run.text, "by_ratio": by_ratio}
    if REFERENCE in run.measured.samples:
        figures["transformers"] = _reference_figures(run)
        rows.append(_reference_row(run))
    columns = (
        "variant",
        "kept",
        "TTFT s",
        "range s",
        "vision s",
        "prefill s",
        "speed-up",
        "quartiles",
        "predicted",
        "achieved",
    )
    table = Table(
        f"Time to first token, {name}, {run.text} text tokens, {run.measured.rounds} interleaved rounds",
        columns,
        tuple(rows),
    )
    environment = describe_environment(threads)
    return Result(
        f"ttft-{name}", environment, figures, run.measured.samples, (table, _kv_table(run)), _notes(run)
    )


def _kv_table(run: TtftRun) -> Table:
    rows = tuple(
        (_variant(ratio), *(f"{found[ratio] / 2**20:.1f}" for found in (run.kv_bytes, run.kv_allocated)))
        for ratio in run.keeps
    )
    return Table("KV cache", ("variant", "cache holds MiB", "allocated MiB"), rows)


def _reference_figures(run: TtftRun) -> dict[str, float]:
    found = {figure: run.measured.summary(REFERENCE, figure).median for figure in (TTFT, VISION, PREFILL)}
    ratios = {
        f"to_bundle_at_{ratio:g}": run.measured.paired_ratio(REFERENCE, _variant(ratio), TTFT)
        for ratio in run.keeps
    }
    return {f"{figure}_seconds": seconds for figure, seconds in found.items()} | ratios


def _reference_row(run: TtftRun) -> tuple[str, ...]:
    found = {figure: run.measured.summary(REFERENCE, figure) for figure in (TTFT, VISION, PREFILL)}
    lower, upper = run.measured.paired_quartiles(_variant(1.0), REFERENCE, TTFT)
    return (
        f"{REFERENCE} (sdpa)",
        str(run.keeps[1.0]),
        f"{found[TTFT].median:.3f}",
        f"{found[TTFT].minimum:.3f} to {found[TTFT].maximum:.3f}",
        f"{found[VISION].median:.3f}",
        f"{found[PREFILL].median:.3f}",
        f"{run.measured.paired_ratio(_variant(1.0), REFERENCE, TTFT):.2f}",
        f"{lower:.2f} to {upper:.2f}",
        "",
        "",
    )


def _notes(run: TtftRun) -> tuple[str, ...]:
    preprocess = run.measured.summary(_variant(1.0), PREPROCESS).median
    notes = [
        "TTFT = vision + embedding + prefill + choice of token. "
        "Speed-ups: median and quartiles of the ratios within a round.",
        f"Preprocessing the image, the same for every ratio and left out: {1e3 * preprocess:.1f} ms.",
        "predicted from multiply-adds: vision and prefill at ratio 1, each scaled by its own.",
        "achieved: measured speed-up ÷ predicted speed-up.",
        "KV cache: `holds` is one copy at full length, `allocated` what the runtime really allocated.",
    ]
    if REFERENCE in run.measured.samples:
        ratios = (
            f"{run.measured.paired_ratio(REFERENCE, _variant(r), TTFT):.2f} at {r:g}" for r in run.keeps
        )
        notes.append(f"transformers unpruned ÷ bundle: {', '.join(ratios)}.")
    return tuple(notes)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.ttft", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=sorted(CONFIGURATIONS), default="llava-onevision-0.5b")
    parser.add_argument(
        "--no-transformers", action="store_true", help="leave out the transformers variant (memory)"
    )
    add_common_options(parser, rounds=5)

    def body(options: argparse.Namespace) -> None:
        settings = settings_from(options)
        result, run = measure_ttft(options.model, settings, reference=not options.no_transformers)
        report(result, settings)
        status(f"drawn: {draw_ttft(run, settings.results / f'{result.name}.png')}")

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())
