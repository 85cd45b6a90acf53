"""Encoders as exporters write them, pruned with defaults: how each is found, and how exact the result is.

    python -m bench.exporters                       the zoo of tests/exporter_zoo.py, against PyTorch
    python -m bench.exporters --folder DIR          every ONNX file in DIR, against its unpruned self

The zoo has real architectures with random weights, in every form that torch's two exporters give them. A
folder may hold any vision encoder: one input [images, 3, height, width], features [images, tokens, width]. A
file that is refused stays in the table, with the reason.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bench.environment import describe_environment
from bench.errors import BenchError
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table, write_markdown
from fopru_graph import GraphError, PruneOptions, PruneReport, prune_file
from runtime.counts import kept_count

__all__ = ["Inputs", "Row", "compare", "main", "measure_folder", "measure_zoo", "parse_size"]

RATIO = 0.3
Array = np.ndarray[Any, Any]
Truth = Callable[[Array], tuple[Array, Array]]
COLUMNS = (
    "encoder",
    "found by",
    "form",
    "score",
    "gather",
    "special",
    "indices equal",
    "Δ PyTorch",
    "Δ unpruned",
    "Δ as written",
)


@dataclass(frozen=True)
class Row:
    """One encoder: what the rewriter said, and the largest absolute differences over all pictures.

    Attributes:
        name: of the case or the file.
        found: the report, or None if pruning was refused; `reason` then says why.
        pictures: compared; `equal` of them have the expected indices at ratio 0.3.
        pytorch: kept rows against PyTorch's; None without a PyTorch model.
        unpruned: kept rows, and all rows at ratio 1, against the unpruned graph, both optimised by the
            runtime.
        as_written: the same with the runtime's optimiser off: what the rewriter itself changes.
    """

    name: str
    found: PruneReport | None = None
    reason: str = ""
    pictures: int = 0
    equal: int = 0
    pytorch: float | None = None
    unpruned: float = 0.0
    as_written: float = 0.0

    @property
    def exact(self) -> bool:
        return self.found is not None and self.equal == self.pictures

    def cells(self) -> tuple[str, ...]:
        if self.found is None:
            return (self.name, "refused", *[""] * (len(COLUMNS) - 2))
        found = self.found
        return (
            self.name,
            found.locator,
            found.form,
            found.score_path,
            found.gather,
            str(found.special_tokens),
            f"{self.equal} of {self.pictures}",
            "" if self.pytorch is None else f"{self.pytorch:.1e}",
            f"{self.unpruned:.1e}",
            f"{self.as_written:.1e}",
        )

    def figures(self) -> dict[str, Any]:
        found = self.found.to_dict() if self.found is not None else None
        kept = (
            "layer",
            "locator",
            "form",
            "score_path",
            "gather",
            "gather_reason",
            "tokens",
            "special_tokens",
        )
        return {
            "found": {key: found[key] for key in (*kept, "prefix_tokens")} if found else None,
            "reason": self.reason,
            "pictures": self.pictures,
            "indices_equal": self.equal,
            "largest_difference": {
                "pytorch": self.pytorch,
                "unpruned": self.unpruned,
                "as_written": self.as_written,
            },
        }


@dataclass(frozen=True)
class Inputs:
    """What to feed files of a folder: `pictures` of `size` (height, width) where a graph leaves it open.

    `features` names the output to prune, "" for the only one of rank 3; `notes` are written into the result.
    """

    pictures: int
    size: tuple[int, int]
    features: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Pair:
    """An unpruned and a pruned file, opened by ONNX Runtime."""

    source: ort.InferenceSession
    pruned: ort.InferenceSession

    @classmethod
    def open(cls, source: Path, target: Path, threads: int, optimised: bool) -> _Pair:
        choices = ort.SessionOptions()
        choices.intra_op_num_threads = threads
        if not optimised:
            choices.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        providers = ["CPUExecutionProvider"]
        sessions = [ort.InferenceSession(path, choices, providers=providers) for path in (source, target)]
        return cls(*sessions)

    def run(self, images: Array, features: str, keep: int | None) -> tuple[Array, Array, Array]:
        """Features, kept indices and scores; those of the unpruned graph without `keep`."""
        name = self.source.get_inputs()[0].name
        if keep is None:
            (whole,) = self.source.run([features], {name: images})
            return whole, np.empty(0), np.empty(0)
        feeds = {name: images, "num_keep": np.array([keep], np.int64)}
        out = self.pruned.run([features, "kept_indices", "token_scores"], feeds)
        return out[0], out[1], out[2]


def compare(source: Path, batches: Iterable[Array], threads: int, truth: Truth | None, name: str) -> Row:
    """Prune `source` with defaults and compare.

    Args:
        source: an ONNX file; the pruned one lies beside it while this runs.
        batches: images [B, 3, H, W] in the dtype of the graph.
        truth: images → PyTorch's unpruned features and scores [B, N]; without it, indices are compared with
            the graph's own scores.
        name: of the features output; "" if the graph has one candidate only.
    """
    try:
        with _pruned_beside(source, PruneOptions(features=name or None)) as (target, found):
            return _compare(source, target, found, list(batches), (threads, truth))
    except GraphError as error:
        return Row(source.stem, reason=str(error))


@contextmanager
def _pruned_beside(source: Path, options: PruneOptions) -> Iterator[tuple[Path, PruneReport]]:
    """The pruned file shares the source's weight files, so it has to lie in their folder."""
    with tempfile.NamedTemporaryFile(prefix=".fopru_", suffix=".onnx", dir=source.parent) as handle:
        target = Path(handle.name)
        found = prune_file(source, target, options)
        try:
            yield target, found
        finally:
            target.touch()  # replaced by the rewriter: what the context manager deletes is there


def _compare(
    source: Path, target: Path, found: PruneReport, batches: list[Array], how: tuple[int, Truth | None]
) -> Row:
    threads, truth = how
    largest = {"pytorch": 0.0, "optimised": 0.0, "plain": 0.0}
    pictures = equal = 0
    for optimised in (True, False):
        pair = _Pair.open(source, target, threads, optimised)
        level = "optimised" if optimised else "plain"
        for images in batches:
            whole, _, _ = pair.run(images, found.features, None)
            tokens = whole.shape[1] - found.prefix_tokens
            expected = truth(images) if truth is not None and optimised else None
            for keep in (kept_count(tokens, RATIO), tokens):
                features, kept, scores = pair.run(images, found.features, keep)
                rows = _rows(whole, found.prefix_tokens, kept)
                largest[level] = max(largest[level], _difference(features, rows))
                if expected is not None:
                    rows = _rows(expected[0], found.prefix_tokens, kept)
                    largest["pytorch"] = max(largest["pytorch"], _difference(features, rows))
                    scores = expected[1]
                if optimised and keep < tokens:
                    pictures += len(kept)
                    equal += int((kept == _highest(scores, keep)).all(axis=1).sum())
    return Row(
        source.stem,
        found,
        pictures=pictures,
        equal=equal,
        pytorch=largest["pytorch"] if truth is not None else None,
        unpruned=largest["optimised"],
        as_written=largest["plain"],
    )


def _highest(scores: Array, keep: int) -> Array:
    return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :keep], axis=1)


def _rows(features: Array, prefix: int, kept: Array) -> Array:
    """Prefix rows, then the kept ones."""
    first = np.tile(np.arange(prefix), (len(kept), 1))
    rows = np.concatenate([first, kept + prefix], axis=1)
    return np.take_along_axis(features, rows[:, :, None], axis=1)


def _difference(left: Array, right: Array) -> float:
    if left.shape != right.shape:
        raise BenchError(f"features have dims {left.shape}, but {right.shape} were expected")
    return float(np.abs(left.astype(np.float64) - right.astype(np.float64)).max())


def measure_zoo(pictures: int, settings: Settings, only: str = "") -> Result:
    """Every case of the zoo whose name contains `only`, over `pictures` noise images each."""
    import torch

    # By name: the tests are not type-checked.
    zoo: Any = importlib.import_module("tests.exporter_zoo")
    torch.set_num_threads(settings.threads)
    cases = [case for case in zoo.all_cases() if only in str(case)]
    if not cases:
        raise BenchError(f"only is '{only}', and no case of the zoo has it in its name: try 'clip'")
    rows = []
    for number, case in enumerate(cases):
        status(f"{number + 1} of {len(cases)}: {case}")
        sizes = [(32, 48), (56, 24)] if case.sizes == "dynamic" else [(32, 32)]
        batch = 1 if case.batch == "one" else 2

        def truth(images: Array, case: Any = case) -> tuple[Array, Array]:
            expected = zoo.reference(case, images)
            return expected.features, expected.scores

        batches = [
            zoo.pixels(case, batch, sizes[turn % len(sizes)], seed=turn) for turn in range(pictures // batch)
        ]
        row = compare(zoo.export(case), batches, settings.threads, truth, case.features)
        rows.append(replace(row, name=str(case)))
    notes = (
        "Random weights, 2 layers of width 32; noise images; indices, scores and features of PyTorch are "
        "those of an implementation that shares no code with the rewriter.",
        *_notes(rows),
    )
    return _result("exporters-zoo", rows, notes, settings)


def measure_folder(folder: Path, inputs: Inputs, settings: Settings) -> Result:
    """Every ONNX file in a folder."""
    files = sorted(path for path in folder.glob("*.onnx") if not path.name.startswith("."))
    if not files:
        raise BenchError(f"there is no *.onnx in {folder}: give the folder of your encoders")
    rows = []
    for number, path in enumerate(files):
        status(f"{number + 1} of {len(files)}: {path.name}")
        rows.append(compare(path, _noise(path, inputs), settings.threads, None, inputs.features))
    return _result(f"exporters-{folder.resolve().name}", rows, (*inputs.notes, *_notes(rows)), settings)


_DTYPES: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def _noise(path: Path, inputs: Inputs) -> Iterator[Array]:
    """Batches of two images, or of as many as the graph is fixed to."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    (image, *_) = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).get_inputs()
    if image.type not in _DTYPES or len(image.shape) != 4:
        raise BenchError(
            f"the first input of {path.name} is {image.type} {image.shape}, but images are float32 or "
            "float16 [images, channels, height, width]: take the file out of the folder"
        )
    usual = (2, 3, *inputs.size)
    dims = [size if isinstance(size, int) else other for size, other in zip(image.shape, usual, strict=True)]
    for seed in range(max(1, inputs.pictures // dims[0])):
        noise = np.random.default_rng(seed).standard_normal(dims, dtype=np.float32)
        yield noise.astype(_DTYPES[image.type])


def _notes(rows: list[Row]) -> tuple[str, ...]:
    pruned = [row for row in rows if row.found is not None]
    refused = tuple(f"{row.name} is refused: {row.reason}" for row in rows if row.found is None)
    return (
        f"Pruned with defaults: {len(pruned)} of {len(rows)}. Indices equal on "
        f"{sum(row.equal for row in pruned)} of {sum(row.pictures for row in pruned)} pictures.",
        "Δ are the largest absolute differences of kept rows, at ratio 0.3 and 1. 'As written' runs both "
        "graphs with ONNX Runtime's optimiser off; with it on, the two graphs may be fused differently, and "
        "a fused sum rounds otherwise. Float16 graphs it computes in float32, and rounds where a node of "
        "float16 stands between two of them.",
        *refused,
    )


def _result(name: str, rows: list[Row], notes: tuple[str, ...], settings: Settings) -> Result:
    figures = {"ratio": RATIO, "encoders": {row.name: row.figures() for row in rows}}
    has_truth = any(row.pytorch is not None for row in rows)
    kept = [place for place, column in enumerate(COLUMNS) if has_truth or column != "Δ PyTorch"]
    cells = tuple(tuple(row.cells()[place] for place in kept) for row in rows)
    table = Table("Exported encoders, pruned with defaults", tuple(COLUMNS[place] for place in kept), cells)
    return Result(name, describe_environment(settings.threads), figures, {}, (table,), notes)


def parse_size(text: str) -> tuple[int, int]:
    """`HEIGHTxWIDTH`."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise BenchError(f"size is '{text}', but it is HEIGHTxWIDTH, e.g. 224x224")
    return int(parts[0]), int(parts[1])


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 1 when an encoder is refused or an index differs."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.exporters", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--folder", type=Path, help="compare the ONNX files in it instead of the zoo")
    parser.add_argument("--only", default="", help="zoo: cases with this in their name")
    parser.add_argument("--images", type=int, default=24, help="pictures per encoder (default 24)")
    parser.add_argument(
        "--size", default="224x224", help="folder: HxW where a graph leaves it open (default 224x224)"
    )
    parser.add_argument("--features", default="", help="folder: output to prune (default: the one of rank 3)")
    parser.add_argument("--note", action="append", default=[], help="folder: sentence to keep in the result")
    add_common_options(parser, rounds=None)
    exact = True

    def body(options: argparse.Namespace) -> None:
        nonlocal exact
        settings = settings_from(options)
        if options.images < 2:
            raise BenchError(f"images is {options.images}: compare at least 2")
        if options.folder is None:
            result = measure_zoo(options.images, settings, options.only)
        else:
            inputs = Inputs(options.images, parse_size(options.size), options.features, tuple(options.note))
            result = measure_folder(options.folder, inputs, settings)
        report(result, settings)
        status(f"written: {write_markdown(result, settings.results)}")
        found = result.figures["encoders"].values()
        exact = all(one["found"] and one["indices_equal"] == one["pictures"] for one in found)

    return run_script(parser, body, arguments) or int(not exact)


if __name__ == "__main__":
    sys.exit(main())
