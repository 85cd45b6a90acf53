"""What do 8 bits in the vision encoder and 4 in the decoder cost and gain?

    python -m bench.quantize                              the demo, 64 pictures
    python -m bench.quantize --model clip-l-336-qwen2-0.5b --samples 16
    python -m bench.quantize --no-build                   without TensorRT for RTX

Builds the float32 bundle, runs `python -m calib.quantize` on it, and reports its fidelity; times both bundles
interleaved, unpruned and pruned; counts the operators of the graphs as ONNX Runtime runs them; and builds
the same in the form for TensorRT with TensorRT for RTX, int8 for SM86 and fp8 for SM89. Random weights have
activations of their own: fidelity is a figure of the demo alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from PIL import Image

from bench.configurations import CONFIGURATIONS
from bench.environment import describe_environment
from bench.errors import BenchError
from bench.exactness import DEMO_PROMPT
from bench.images import mixed_images
from bench.interleave import Measurement, Variant, interleave
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table, write_markdown
from bench.target_graphs import decoder_profiles
from bench.workspace import DEMO, single_layout
from calib.quantize.__main__ import main as quantise
from demo.curve import EVALUATION_SEED
from demo.write_data import write_data
from fopru_graph.lint.rtx import BuildReport, build_check
from runtime import Generator, Request, contract, load_bundle
from runtime.backends.onnxruntime import session_options
from runtime.reuse import NO_REUSE

__all__ = ["main", "measure_quantised", "operators"]

PRECISION = "vision=int8,decoder=int4"
RATIOS = (1.0, 0.3)
NEW_TOKENS = 16
STAGES = ("vision", "prefill", "decode", "ttft")
_TARGET, _INT8, _FP8 = "tensorrt-rtx", "SM86", "SM89"
_SHOWN = (
    "MatMulIntegerToFloat",
    "QLinearMatMul",
    "QGemm",
    "MatMulNBits",
    "MatMul",
    "FusedMatMul",
    "Gemm",
    "Conv",
)


@dataclass(frozen=True)
class Question:
    """What is measured: a model, how many samples, and whether engines are built."""

    model: str
    samples: int
    build: bool


def measure_quantised(question: Question, settings: Settings) -> Result:
    """Quantise one model and measure it."""
    if question.samples < 4:
        raise BenchError(f"samples is {question.samples}: give at least 4, of which one is held out")
    source = settings.workspace.bundle(question.model)
    data = _data(question, source, settings.workspace.root / f"{question.model}-pictures")
    words = ["--data", str(data), "--samples", str(question.samples), "--threads", str(settings.threads)]
    found, quantised = _quantised(source, PRECISION, words, None)
    picture = next(iter(sorted(data.parent.glob("*.png"))))
    measured = _timed({"float32": source, "quantised": quantised}, picture, settings)
    counts = {
        graph: operators(load_bundle(quantised, verify=False).graph(graph))
        for graph in (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU)
    }
    engines = _engines(source, words) if question.build else {}
    return _result(question, found, (measured, counts, engines), settings.threads)


def _data(question: Question, source: Path, folder: Path) -> Path:
    """A JSONL file: scenes with questions for the demo, which can read them, else pictures of all kinds."""
    if question.model == DEMO:
        return write_data(folder, question.samples, EVALUATION_SEED)
    folder.mkdir(parents=True, exist_ok=True)
    side = single_layout(load_bundle(source, verify=False)).image_size[0]
    pictures = [each for kind in mixed_images(question.samples, side, 0).values() for each in kind]
    rows = []
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
        rows.append(json.dumps({"image": f"{number:03d}.png", "prompt": DEMO_PROMPT}) + "\n")
    file = folder / "questions.jsonl"
    file.write_text("".join(rows), encoding="utf-8")
    return file


def operators(graph: Path) -> dict[str, int]:
    """Operators of a graph as ONNX Runtime runs it on this processor, by name."""
    import onnxruntime

    options = session_options(onnxruntime, 1)
    target = graph.with_name(f".{graph.stem}.optimised.onnx")
    options.optimized_model_filepath = str(target)
    try:
        onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        return dict(Counter(node.op_type for node in ir.load(target).graph).most_common())
    finally:
        for path in graph.parent.glob(f"{target.name}*"):
            path.unlink()


def _quantised(
    source: Path, precision: str, words: list[str], target: str | None
) -> tuple[dict[str, Any], Path]:
    """The report of `calib.quantize`, and where the bundle is."""
    label = precision.replace("=", "-").replace(",", "-") + (f"-{target}" if target else "")
    output, work = source.with_name(f"{source.name}-{label}"), source.with_name(f"{source.name}-calibration")
    status(f"python -m calib.quantize --precision {precision}" + (f" --target {target}" if target else ""))
    arguments = [
        str(source),
        "--precision",
        precision,
        "--output",
        str(output),
        "--work",
        str(work),
        "--json",
    ]
    arguments += [*words, *(["--target", target] if target else [])]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = quantise(arguments)
    if code not in (0, 1):
        raise BenchError(f"calib.quantize ended with status {code}: see its message above")
    found: dict[str, Any] = json.loads(out.getvalue())
    return found, output


def _timed(bundles: Mapping[str, Path], picture: Path, settings: Settings) -> Measurement:
    variants = []
    for ratio in RATIOS:
        for name, path in bundles.items():
            generator = Generator(load_bundle(path, verify=False), threads=settings.threads, reuse=NO_REUSE)
            request = Request(
                DEMO_PROMPT,
                (picture,),
                selector="graph" if ratio < 1 else "none",
                ratio=ratio if ratio < 1 else None,
                max_new_tokens=NEW_TOKENS,
                ignore_eos=True,
            )
            variants.append(Variant(_name(name, ratio), _answering(generator, request)))
    return interleave(variants, rounds=settings.rounds, warmup=settings.warmup, settle=True, progress=status)


def _answering(generator: Generator, request: Request) -> Any:
    def run() -> dict[str, float]:
        seconds = generator.generate(request).timings.to_dict()
        return {stage: seconds[stage] for stage in STAGES}

    return run


def _name(bundle: str, ratio: float) -> str:
    return f"{bundle}, ratio {ratio:g}"


def _engines(source: Path, words: list[str]) -> dict[str, dict[str, Any]]:
    """TensorRT for RTX on the form for TensorRT; empty where it is not installed."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        status("TensorRT for RTX is not installed: no engines")
        return {}
    found = {}
    for precision, chip in ((PRECISION, _INT8), ("vision=fp8", _FP8)):
        report, path = _quantised(source, precision, words, _TARGET)
        bundle = load_bundle(path, verify=False)
        graphs = [contract.VISION_ENCODER_FOPRU]
        graphs += [contract.DECODER_PORTABLE] if precision == PRECISION else []
        for graph in graphs:
            status(f"TensorRT for RTX: {graph} of {precision} for {chip}")
            profiles = decoder_profiles(bundle) if graph == contract.DECODER_PORTABLE else {}
            made = build_check(bundle.graph(graph), profiles, capabilities=(chip,))
            name = f"{graph} {bundle.manifest.graphs[graph].precision}"
            found[name] = _engine(made, chip) | _kept(graph, report)
    return found


def _kept(graph: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """What of an encoder stays in float, and how near it is to float32."""
    if graph not in (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU):
        return {"float": None, "groups": None, "cosine": None}
    vision = report["vision"]
    groups, cosine = len(vision["groups"]), vision["fidelity"]["cosine"]
    return {"float": len(vision["float"]), "groups": groups, "cosine": cosine}


def _engine(made: BuildReport, chip: str) -> dict[str, Any]:
    engine = next((each for each in made.engines if each.capability == chip), None)
    errors = [finding.message for finding in made.findings if finding.severity == "error"]
    return {
        "chip": chip,
        "version": made.version,
        "parse_seconds": made.parse_seconds,
        "build_seconds": None if engine is None else engine.seconds,
        "bytes": None if engine is None else engine.bytes,
        "errors": errors,
    }


def _result(
    question: Question,
    found: dict[str, Any],
    measured: tuple[Measurement, dict[str, dict[str, int]], dict[str, dict[str, Any]]],
    threads: int,
) -> Result:
    times, counts, engines = measured
    ratios = {
        f"ratio {ratio:g}": {
            stage: {
                "seconds": {
                    name: times.summary(_name(name, ratio), stage).median for name in ("float32", "quantised")
                },
                "quantised_to_float32": times.paired_ratio(*_pair(ratio), stage),
                "quartiles": times.paired_quartiles(*_pair(ratio), stage),
            }
            for stage in STAGES
        }
        for ratio in RATIOS
    }
    figures = {"model": question.model, "precision": PRECISION, "fidelity": found, "times": ratios}
    figures |= {"operators": counts, "engines": engines}
    tables = [_time_table(question, ratios), _fidelity_table(found), _operator_table(counts)]
    if engines:
        tables.append(_engine_table(engines))
    notes = (
        "Times: one picture and 16 tokens, both bundles in one process, interleaved; a ratio is the median "
        "over rounds of the ratio within a round, with its quartiles.",
        "ONNX Runtime multiplies 8 bits as MatMulIntegerToFloat; the convolution of the patches stays "
        "float32 there, as its output is not quantised.",
    )
    name = f"quantize-{question.model}"
    return Result(name, describe_environment(threads), figures, times.samples, tuple(tables), notes)


def _pair(ratio: float) -> tuple[str, str]:
    return _name("quantised", ratio), _name("float32", ratio)


def _time_table(question: Question, ratios: Mapping[str, Any]) -> Table:
    rows = []
    for ratio, stages in ratios.items():
        for stage, each in stages.items():
            low, high = each["quartiles"]
            seconds = each["seconds"]
            rows.append(
                (
                    f"{ratio}: {stage}",
                    f"{seconds['float32'] * 1e3:.1f}",
                    f"{seconds['quantised'] * 1e3:.1f}",
                    f"{each['quantised_to_float32']:.2f} ({low:.2f} to {high:.2f})",
                )
            )
    title = f"{question.model}, {PRECISION}: time on this processor"
    return Table(title, ("at", "float32 ms", "quantised ms", "ratio"), tuple(rows))


def _fidelity_table(found: Mapping[str, Any]) -> Table:
    vision, loss, whole = found["vision"], found["loss"], found["whole"]
    fidelity, sizes = vision["fidelity"], found["bytes"]
    rows = [
        ("pictures held out", str(fidelity["pictures"])),
        ("cosine of features (least)", f"{fidelity['cosine']:.5f} ({fidelity['least_cosine']:.5f})"),
        ("kept tokens that float32 keeps", f"{fidelity['overlap']:.1%}"),
        ("groups left in float32", ", ".join(vision["float"]) or "none"),
        ("cosine of the decoder's logits", f"{loss['mean_cosine']:.5f}"),
        ("likeliest token the same", f"{loss['top1_agreement']:.1%} of {loss['positions']}"),
        ("first token the same, pruned", f"{whole['first']:.1%} of {whole['samples']}"),
        ("first token the same, unpruned", f"{whole['unpruned_first']:.1%} of {whole['samples']}"),
    ]
    for part in sizes["after"]:
        before, after = sizes["before"][part] / 1e6, sizes["after"][part] / 1e6
        rows.append((f"MB of {part}", f"{before:,.1f} to {after:,.1f}"))
    return Table("Beside float32", ("what", "found"), tuple(rows))


def _operator_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    rows = tuple(
        (graph, *(str(own.get(operator, 0)) for operator in _SHOWN)) for graph, own in counts.items()
    )
    return Table("Products as ONNX Runtime runs them", ("graph", *_SHOWN), rows)


def _engine_table(engines: Mapping[str, Mapping[str, Any]]) -> Table:
    def number(value: float | None, scale: float = 1.0) -> str:
        return "-" if value is None else f"{value / scale:.1f}"

    rows = tuple(
        (
            graph,
            each["chip"],
            number(each["parse_seconds"]),
            number(each["build_seconds"]),
            number(each["bytes"], 1e6),
            "; ".join(each["errors"]) or "none",
            "-" if each["groups"] is None else f"{each['float']} of {each['groups']}",
            "-" if each["cosine"] is None else f"{each['cosine']:.5f}",
        )
        for graph, each in engines.items()
    )
    version = next(iter(engines.values()))["version"]
    columns = ("graph", "chip", "parse s", "build s", "engine MB", "errors", "groups in float", "cosine")
    return Table(f"For TensorRT, rest in float16; TensorRT for RTX {version}", columns, rows)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quantize", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", choices=(DEMO, *sorted(CONFIGURATIONS)), default=DEMO)
    parser.add_argument("--samples", type=int, default=64, help="pictures, a quarter held out (default 64)")
    parser.add_argument("--no-build", action="store_true", help="build no engines")
    add_common_options(parser, rounds=9)

    def body(options: argparse.Namespace) -> None:
        settings = settings_from(options)
        question = Question(options.model, options.samples, not options.no_build)
        result = measure_quantised(question, settings)
        report(result, settings)
        write_markdown(result, settings.results)

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())
