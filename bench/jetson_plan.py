"""LLaVA-1.5-7B as TensorRT engines on three Jetson boards: memory by part, and which of them it fits.

    python -m bench.jetson_plan

Plan and preflight of `python -m runtime.engine` on a manifest made from the published sizes: no weight is
loaded, nothing is built, and nothing was run on a board. Weights are counted from the shapes.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from bench.configurations import configuration
from bench.environment import describe_environment
from bench.options import add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table, write_markdown
from runtime import contract
from runtime.layouts.single import SingleLayout
from runtime.manifest import (
    FORMAT_VERSION,
    DecoderInfo,
    FileInfo,
    GraphInfo,
    Manifest,
    ModelInfo,
    Preprocess,
    PromptTemplate,
    PruningInfo,
    SpecialTokens,
)
from runtime.tensorrt.memory import BOARDS, MemoryNeed, Verdict, memory_of, preflight, sizes_from_config
from runtime.tensorrt.plan import Limits, plan_engines

__all__ = ["MODEL", "llava_manifest", "main", "parameters", "plan_boards"]

MODEL = "llava-1.5-7b"
PRECISIONS = ("fp16", "int4")
RATIOS = (1.0, 0.3)
IMAGES = (4, 1)
WORKSPACE = 1 << 30  # what the command gives a board of 8 GB
GIB = 1 << 30

# half a byte, and a float16 scale per block of 32, as `--target jetpack6 --precision decoder=int4` writes
_INT4 = 0.5 + 2 / 32
_SHA = "0" * 64


def parameters(part: str) -> tuple[int, int]:
    """(all, those in matrices of the decoder's layers and head) of a part: vision, embed, decoder."""
    found = configuration(MODEL)
    vision, text = found.vision, found.text
    width, mlp = text["hidden_size"], text["intermediate_size"]
    if part == "embed":
        return text["vocab_size"] * width, 0
    if part == "decoder":
        rows = text["num_key_value_heads"] * (width // text["num_attention_heads"])
        matrices = text["num_hidden_layers"] * (2 * width**2 + 2 * rows * width + 3 * width * mlp)
        matrices += text["vocab_size"] * width
        return matrices + (2 * text["num_hidden_layers"] + 1) * width, matrices
    own, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    layers = vision["num_hidden_layers"] - 1  # features are those of the last layer but one
    tokens = (vision["image_size"] // patch) ** 2
    layer = 4 * (own**2 + own) + 2 * own * inner + inner + own + 4 * own
    tower = 3 * patch**2 * own + own + (tokens + 1) * own + 2 * own + layers * layer
    return tower + own * width + width + width**2 + width, 0


def llava_manifest(precision: str) -> Manifest:
    """The manifest that a bundle of the model has, with sizes counted from shapes; its files do not exist.

    `int4` is about the decoder's matrices; vision and embedding are fp16 then, and so is the KV cache.
    """
    found = configuration(MODEL)
    vision, text = found.vision, found.text
    side, tokens = vision["image_size"], (vision["image_size"] // vision["patch_size"]) ** 2
    grid = side // vision["patch_size"], side // vision["patch_size"]
    layout = SingleLayout(grid, tokens, {"shortest_edge": side}, {"height": side, "width": side}, None)
    heads = text["num_attention_heads"]
    decoder = DecoderInfo(
        layers=text["num_hidden_layers"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["hidden_size"] // heads,
        hidden_size=text["hidden_size"],
        vocab_size=text["vocab_size"],
        max_positions=text["max_position_embeddings"],
        caches={contract.DECODER_PORTABLE: contract.APPEND},
        cache_dtype="float16",
    )
    graphs = {
        **contract.vision_contracts(layout, decoder.hidden_size),
        contract.EMBED_TOKENS: contract.embed_contract(decoder.hidden_size),
        contract.DECODER_PORTABLE: contract.decoder_contract(decoder, contract.APPEND),
    }
    names = {name: _names(name, precision) for name in graphs}
    sizes: dict[str, int] = {}
    for name, (_, stored) in names.items():
        sizes[contract.graph_file(name)] = 1  # the graph without its weights: nothing beside them
        sizes[contract.data_file(name)] = _stored_bytes(name, stored)
    return Manifest(
        format_version=FORMAT_VERSION,
        created_by={},
        model=ModelInfo(MODEL, found.source, "llava", "LlavaForConditionalGeneration"),
        prompt=PromptTemplate("{images}{prompt}", None, "<image>", add_special_tokens=True),
        tokens=SpecialTokens(0, (2,), None, None),
        preprocess=Preprocess(3, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        layout=layout,
        pruning=PruningInfo("rank", "col_mean", 22, "one_pass", "early", "renumber", 0.3, None),
        decoder=decoder,
        graphs={
            name: GraphInfo(contract.graph_file(name), each.inputs, each.outputs, names[name][1])
            for name, each in graphs.items()
        },
        files={name: FileInfo(size, _SHA) for name, size in sizes.items()},
    )


def _names(graph: str, precision: str) -> tuple[str, str]:
    """(part, precision) of a graph."""
    part = "decoder" if graph == contract.DECODER_PORTABLE else graph.split("_")[0]
    return part, precision if part == "decoder" else "fp16"


def _stored_bytes(graph: str, precision: str) -> int:
    total, matrices = parameters(_names(graph, precision)[0])
    if precision == "int4":
        return round(matrices * _INT4) + 2 * (total - matrices)
    return 2 * total


def plan_boards() -> Result:
    """Every precision, greatest ratio and number of images against every board."""
    found = configuration(MODEL)
    config = {"vision_config": found.vision, "text_config": found.text}
    parts, fits, figures = [], [], {}
    for precision in PRECISIONS:
        manifest = llava_manifest(precision)
        sizes = sizes_from_config(config, manifest)
        for images in IMAGES:
            for ratio in RATIOS:
                limits = Limits(max_images=images, ratio=ratio, max_ratio=ratio)
                plan = plan_engines(manifest, limits, WORKSPACE)
                need = memory_of(plan, manifest, sizes)
                name = f"{precision}, {images} image{'s' if images > 1 else ''}, ratio {ratio:g}"
                parts.append((name, str(plan.capacity), *_part_cells(need)))
                checks = {board: preflight(need, free) for board, free in BOARDS.items()}
                fits.append((name, *(_answer(need, each.verdict) for each in checks.values())))
                figures[name] = {
                    "capacity": plan.capacity,
                    "memory": asdict(need) | {"run": need.run, "build_peak": need.build_peak},
                    "boards": {board: asdict(each.verdict) for board, each in checks.items()},
                }
    tables = (
        Table(
            f"{MODEL}: memory in GiB, by arithmetic",
            (
                *("engines", "cache rows", "weights", "KV cache", "I/O", "scratch", "kept pictures", "CUDA"),
                *("running", "build peak", "in one piece"),
            ),
            tuple(parts),
        ),
        Table(
            "Free: " + ", ".join(f"{name} {free.available / GIB:.1f} GiB" for name, free in BOARDS.items()),
            ("engines", *BOARDS),
            tuple(fits),
        ),
    )
    return Result("jetson-plan", describe_environment(None), figures, {}, tables, _NOTES)


_NOTES = (
    "No board was used: sizes are counted from shapes, free memory is MemTotal as users report it less 0.9 "
    "GiB for a system without desktop. What a board really takes is for `python -m runtime.engine` there.",
    "Ratio is the greatest fraction kept (--max-ratio); 512 text tokens and 256 new ones at most.",
    "int4: the decoder's matrices in 4 bits with a float16 scale per 32; everything else, the KV cache and "
    "activations in float16.",
    "kept pictures: visual tokens of earlier ones, 256 MiB at most by default; a Generator made with "
    "Reuse(features=0) keeps none.",
    "build peak: twice the weights of the largest graph, its scratch memory, 1 GiB of workspace and CUDA; "
    "language models were seen to take 3 to 4 times their weights. Swap counts for it.",
    '"in one piece" is the largest single allocation; boards under 12 GiB are refused where it exceeds the '
    "contiguous memory (256 MiB unless cma= says more).",
)


def _part_cells(need: MemoryNeed) -> tuple[str, ...]:
    sizes = (
        *(sum(need.weights.values()), need.kv, need.io, need.scratch, need.features, need.overhead),
        *(need.run, need.build_peak, need.largest[1]),
    )
    return tuple(f"{size / GIB:.2f}" for size in sizes)


def _answer(need: MemoryNeed, verdict: Verdict) -> str:
    """`fits`, or what stands against it."""
    problems = verdict.problems
    if any(each.startswith("running") or "cannot be swapped" in each for each in problems):
        return "no"
    found = ["needs swap to build"] if any("of swap" in each for each in problems) else []
    if any("in one piece" in each for each in problems):
        found.append(f"needs cma={need.largest[1] // (1 << 20)}M or more")
    if any(each.startswith("running") for each in verdict.warnings):
        found.append("with Reuse(features=0)")
    return ", ".join(found) or "fits"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.jetson_plan", description=(__doc__ or "").splitlines()[0]
    )
    add_common_options(parser, rounds=None, timed=False)

    def body(options: argparse.Namespace) -> None:
        settings = settings_from(options)
        result = plan_boards()
        report(result, settings)
        status(f"written: {write_markdown(result, settings.results)}")

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())
