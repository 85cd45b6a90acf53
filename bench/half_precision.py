"""How far are float16 and bfloat16 graphs from PyTorch in float32, and do they keep the same tokens?

    python -m bench.half_precision                       the demo checkpoint, 200 pictures
    python -m bench.half_precision --images 10

Per picture: cosine and size of the vision features (rows of the unpruned encoder) and of the logits behind
the pruned prompt, whether the likeliest token is the same, and whether the same visual tokens are kept. Two
scores tie when they are closer than the rounding of the features they come from: a difference of kept tokens
counts as a near-tie when each token that only one side keeps has a float32 score within `TIE_BITS` of the
K-th one.

ONNX Runtime's processor runs float16 graphs by casting to float32 and back around each operator, and bfloat16
graphs not at all: those run as their twin in float32 whose every value is rounded
(`calib.precision.emulate`). Rounding is that of a GPU; the order of sums, and how many values stay unrounded
inside fused kernels, is not.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from PIL import Image

from bench.environment import describe_environment
from bench.errors import BenchError
from bench.exactness import DEMO_PROMPT
from bench.images import mixed_images
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table, write_markdown
from bench.torch_reference import load_reference
from bench.workspace import DEMO, single_layout
from calib.bundle_writer import file_infos
from calib.precision import Precision, Precisions, graph_file_of
from calib.precision.bundle import convert_bundle
from calib.precision.emulate import emulate_bfloat16
from runtime import Generator, contract, load_bundle
from runtime.bundle import MANIFEST_FILE
from runtime.parity import length_gain, measure, row_cosine
from runtime.plan import Amount
from runtime.reuse import NO_REUSE

__all__ = ["PRECISIONS", "TIE_BITS", "Agreement", "kept_agreement", "main", "measure_halves"]

PRECISIONS = ("fp16", "bf16")
TIE_BITS: Mapping[str, int] = {"fp16": 8, "bf16": 5}
"""Scores tie within 2**-bits of the boundary score: three bits less than the precision has."""

_EQUAL, _TIE, _DIFFERENT = "equal", "near-tie", "different"
_ANSWER = 8  # tokens compared


@dataclass
class Agreement:
    """What was seen of one precision, a number per picture."""

    vision: list[float] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    top1: list[bool] = field(default_factory=list)
    answers: list[bool] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)

    def add(self, reference: dict[str, Any], measured: dict[str, Any], bits: int) -> None:
        """Count one picture."""
        self.vision.append(row_cosine(reference["image_features"], measured["image_features"]) or 0.0)
        wanted, got = (arrays["logits"].reshape(1, -1).astype(np.float64) for arrays in (reference, measured))
        # A number added to all logits changes nothing, and would hide differences.
        self.logits.append(row_cosine(wanted - wanted.mean(), got - got.mean()) or 0.0)
        self.gains += [
            length_gain(reference["image_features"], measured["image_features"]) or 0.0,
            length_gain(wanted - wanted.mean(), got - got.mean()) or 0.0,
        ]
        self.top1.append(bool(wanted.argmax() == got.argmax()))
        self.answers.append(np.array_equal(reference["tokens"], measured["tokens"]))
        kept = reference["kept_indices"]
        self.kept.append(kept_agreement(kept, measured["kept_indices"], reference["token_scores"], bits))
        self.overlap.append(len(np.intersect1d(kept, measured["kept_indices"])) / len(kept))

    def figures(self) -> dict[str, Any]:
        """Means, least ones and counts."""
        return {
            "pictures": len(self.vision),
            "vision_cosine": float(np.mean(self.vision)),
            "vision_cosine_least": min(self.vision),
            "logits_cosine": float(np.mean(self.logits)),
            "logits_cosine_least": min(self.logits),
            "gain_farthest": max(self.gains, key=lambda gain: abs(gain - 1)),
            "top1": float(np.mean(self.top1)),
            "answers_equal": sum(self.answers),
            "kept": {verdict: self.kept.count(verdict) for verdict in (_EQUAL, _TIE, _DIFFERENT)},
            "kept_overlap": float(np.mean(self.overlap)),
            "kept_overlap_least": min(self.overlap),
        }


def kept_agreement(
    wanted: npt.NDArray[Any], got: npt.NDArray[Any], scores: npt.NDArray[Any], bits: int
) -> str:
    """`equal`, `near-tie` or `different`.

    Args:
        wanted, got: int64 [K], indices kept in float32 and in fewer bits.
        scores: float32 [N], of float32.
        bits: scores tie within 2**-bits of the least score that was kept.
    """
    if np.array_equal(wanted, got):
        return _EQUAL
    boundary = float(scores[wanted].min())
    swapped = np.setxor1d(wanted, got)
    near = np.abs(scores[swapped] - boundary) <= 2.0**-bits * abs(boundary)
    return _TIE if wanted.shape == got.shape and swapped.size and near.all() else _DIFFERENT


def measure_halves(images: int, settings: Settings) -> Result:
    """Compare the demo's bundle in both precisions with PyTorch, picture by picture."""
    import torch

    if images < 1:
        raise BenchError(f"images is {images}: compare at least 1 picture")
    torch.set_num_threads(settings.threads)
    source = settings.workspace.bundle(DEMO)
    reference = load_reference(settings.workspace.checkpoint(DEMO))
    amount = Amount(ratio=settings.workspace.ratio)
    bundle = load_bundle(source, verify=False)
    side = single_layout(bundle).image_size[0]
    pictures = [Image.fromarray(each) for kind in mixed_images(images, side, 0).values() for each in kind]
    found = {name: Agreement() for name in PRECISIONS}
    with tempfile.TemporaryDirectory(prefix="fopru_half_") as folder:
        generators = {}
        for name in PRECISIONS:
            made = load_bundle(_converted(source, Path(folder) / name, name), verify=False)
            generators[name] = Generator(made, threads=settings.threads, reuse=NO_REUSE)
        for number, picture in enumerate(pictures):
            if number % 20 == 0:
                status(f"picture {number + 1} of {images}")
            wanted = reference.arrays(bundle, (picture, DEMO_PROMPT), amount, _ANSWER)
            for name, generator in generators.items():
                got, _ = measure(generator, [picture], DEMO_PROMPT, amount, _ANSWER)
                found[name].add(wanted, got, TIE_BITS[name])
    return _result({name: each.figures() for name, each in found.items()}, settings.threads)


def _converted(source: Path, target: Path, name: str) -> Path:
    """A copy of a float32 bundle with its portable graphs in another precision, bfloat16 as its twin."""
    shutil.copytree(source, target)
    manifest = load_bundle(target, verify=False).manifest
    precision = Precision(name)
    precisions = Precisions(precision, precision, precision)
    dropped = contract.DECODER if contract.DECODER_PORTABLE in manifest.graphs else ""
    kept = {graph: info for graph, info in manifest.graphs.items() if graph != dropped}
    if dropped:
        (target / manifest.graphs[dropped].file).unlink()
    convert_bundle(target, precisions, tuple(kept))
    if name == "bf16":
        for graph in kept:
            path = target / graph_file_of(graph, precision)
            model = ir.load(path)
            emulate_bfloat16(model)
            ir.save(model, path)
    cache = "float16" if name == "fp16" else "float32"
    decoder = replace(
        manifest.decoder,
        cache_dtype=cache,
        caches={graph: kind for graph, kind in manifest.decoder.caches.items() if graph in kept},
    )
    stored = name if name == "fp16" else "fp32"  # of the twin, which is what the runtime opens
    graphs = {
        graph: replace(info, file=graph_file_of(graph, precision), precision=stored)
        for graph, info in kept.items()
    }
    graphs |= {
        graph: replace(graphs[graph], inputs=table.inputs, outputs=table.outputs)
        for graph, kind in decoder.caches.items()
        for table in (contract.decoder_contract(decoder, kind),)
    }
    files = file_infos(target)
    changed = replace(manifest, decoder=decoder, graphs=graphs, files=files, parity=None)
    (target / MANIFEST_FILE).write_text(changed.to_json(), encoding="utf-8")
    return target


def _result(figures: dict[str, Any], threads: int) -> Result:
    rows = tuple(
        (
            name,
            f"{1 - each['vision_cosine']:.1e} ({1 - each['vision_cosine_least']:.1e})",
            f"{1 - each['logits_cosine']:.1e} ({1 - each['logits_cosine_least']:.1e})",
            f"{each['gain_farthest'] - 1:+.1e}",
            f"{each['top1']:.1%}",
            str(each["answers_equal"]),
            str(each["kept"][_EQUAL]),
            str(each["kept"][_TIE]),
            str(each["kept"][_DIFFERENT]),
            f"{each['kept_overlap']:.4f} ({each['kept_overlap_least']:.4f})",
        )
        for name, each in figures.items()
    )
    columns = (
        *("precision", "1 - cosine, vision (most)", "1 - cosine, logits (most)"),
        *("size of either - 1 (most)", "same first token"),
        *(f"same {_ANSWER} tokens", "kept: equal", "near-tie", "different", "overlap (least)"),
    )
    pictures = next(iter(figures.values()))["pictures"]
    title = f"The demo in 16 bits beside PyTorch in float32, {pictures} pictures"
    notes = (
        "ONNX Runtime's processor runs float16 graphs by casting around each operator, and bfloat16 graphs "
        "as a twin in float32 whose every value is rounded; no GPU was used.",
        "Kept tokens: a near-tie is a difference in which each token that one side alone keeps has a float32 "
        f"score within 2^-{TIE_BITS['fp16']} (fp16) or 2^-{TIE_BITS['bf16']} (bf16) of the last kept one's.",
        "The scoring layer's products of Q with K, all behind them, and the LM head are computed in float32.",
    )
    return Result(
        "half-precision-demo",
        describe_environment(threads),
        figures,
        {},
        (Table(title, columns, rows),),
        notes,
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.half_precision", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--images", type=int, default=200, help="pictures to compare (default 200)")
    add_common_options(parser, rounds=None)

    def body(options: argparse.Namespace) -> None:
        settings = settings_from(options)
        result = measure_halves(options.images, settings)
        report(result, settings)
        write_markdown(result, settings.results)

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())
