"""Every family at its published vision side: tokens, exactness, what targets say, and lines of code.

    python -m bench.families                        all families, about ten minutes on two cores
    python -m bench.families --families qwen2_5_vl --depth 8
    python -m bench.families --tiny                 everything small: checks the script

For each family a bundle is built from a random-weight checkpoint (`bench/family_models.py`), compared with
PyTorch stage by stage, and its answers with those of transformers' own `generate`. Exit status 1: something
differs.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.code_lines import code_lines
from bench.environment import ROOT, describe_environment
from bench.errors import BenchError
from bench.family_models import FAMILY_MODELS, Cut, FamilyModel, ensure_family_checkpoint
from bench.images import block_image
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.processors import PROMPT
from bench.results import Result, Table, write_markdown
from bench.target_checks import RtxFound, graver_findings, lint_found, rtx_found
from bench.torch_reference import load_reference
from calib.errors import CalibError
from export.errors import ExportError
from fopru_graph import GraphError
from fopru_graph.lint import SEVERITIES, TARGETS, LintReport
from runtime import FopruError, Generator, Request, load_bundle
from runtime.bundle import Bundle
from runtime.parity import compare, measure
from runtime.plan import Amount, kept_placeholders, plan_pruning
from runtime.reuse import NO_REUSE

__all__ = ["Exactness", "Found", "Tokens", "equal_tokens", "main", "measure_families", "tokens_of"]

RATIO = 0.3
NEW_TOKENS = 32
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tokens:
    """Visual tokens of one picture as the language model sees them, newline vectors included."""

    height: int
    width: int
    units: int
    before: int
    after: int


@dataclass(frozen=True)
class Exactness:
    """The bundle against PyTorch on one picture of (height, width) `picture`.

    `within` of `compared` stages are within tolerance; `tokens_whole` and `tokens_pruned` of `NEW_TOKENS`
    greedy tokens equal those of `generate` with every token kept, and those of the reference at `RATIO`.
    """

    picture: tuple[int, int]
    within: int
    compared: int
    tokens_whole: int
    tokens_pruned: int
    stages: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return self.within == self.compared and NEW_TOKENS == self.tokens_whole == self.tokens_pruned


@dataclass(frozen=True)
class Found:
    """What was found out about one family."""

    tokens: tuple[Tokens, ...]
    exactness: Exactness
    lint: dict[str, LintReport]
    rtx: RtxFound
    lines: dict[str, tuple[int, int]]


def tokens_of(bundle: Bundle, sizes: Sequence[tuple[int, int]], ratio: float) -> tuple[Tokens, ...]:
    """Tokens before and after for pictures of (height, width) `sizes`; no graph runs."""
    manifest = bundle.manifest
    request = Request("", ratio=ratio)
    found = []
    for height, width in sizes:
        plan = manifest.layout.plan(height, width)
        (counts,) = plan_pruning(request, manifest, [plan]).counts
        prefix, newline = manifest.layout.prefix_tokens, manifest.pruning.newline
        after = kept_placeholders(plan, sum(counts), prefix, newline)
        found.append(Tokens(height, width, len(plan.units), plan.placeholders, after))
    return tuple(found)


def measure_families(
    models: Sequence[FamilyModel], cut: Cut, settings: Settings, *, build_rtx: bool = True
) -> Result:
    """Build, compare and check every family; one that fails is reported with its message."""
    found: dict[str, Found] = {}
    failed: dict[str, str] = {}
    for model in models:
        try:
            found[model.name] = _measure(model, cut, settings, build_rtx)
        except (BenchError, CalibError, ExportError, GraphError, FopruError) as error:
            status(f"{model.name}: {error}")
            failed[model.name] = str(error)
        gc.collect()  # models and traced programs are full of cycles
    return _result(found, failed, cut, settings)


def _measure(model: FamilyModel, cut: Cut, settings: Settings, build_rtx: bool) -> Found:
    name = f"family-{model.name}{'-tiny' if cut.tiny else ''}"
    sizes = model.tiny_sizes if cut.tiny else model.sizes
    status(f"{model.name}: writing the checkpoint")
    checkpoint = ensure_family_checkpoint(model, cut, settings.workspace.root / "checkpoints" / name)
    status(f"{model.name}: building the bundle")
    bundle = load_bundle(settings.workspace.bundle_of(checkpoint, name), verify=False)
    status(f"{model.name}: comparing with PyTorch")
    exactness = _exactness(bundle, checkpoint, sizes[0], settings.threads)
    status(f"{model.name}: asking targets")
    files = {
        "family": f"export/families/{model.name}.py",
        "layout": f"runtime/layouts/{model.layout}.py",
    }
    return Found(
        tokens_of(bundle, sizes, RATIO),
        exactness,
        lint_found(bundle),
        rtx_found(bundle, sizes, RATIO, build_rtx),
        {name: code_lines(ROOT / file) for name, file in files.items()},
    )


def _exactness(bundle: Bundle, checkpoint: Path, size: tuple[int, int], threads: int) -> Exactness:
    """Compare with the reference at `RATIO`, and with `generate` where every token is kept."""
    import torch

    torch.set_num_threads(threads)
    image = Image.fromarray(block_image(*size, seed=0))
    amount = Amount(ratio=RATIO)
    loaded = load_reference(checkpoint)
    reference = loaded.arrays(bundle, (image, PROMPT), amount, NEW_TOKENS)
    whole = loaded.generated(image, PROMPT, NEW_TOKENS)
    del loaded
    gc.collect()  # two sets of weights would be in memory from here on
    generator = Generator(bundle, threads=threads, reuse=NO_REUSE)
    measured, units = measure(generator, [image], PROMPT, amount, NEW_TOKENS)
    outcome = compare(reference, measured, units)
    kept, _ = measure(generator, [image], PROMPT, Amount(ratio=1.0), NEW_TOKENS)
    return Exactness(
        size,
        sum(stage.ok and not stage.skipped for stage in outcome.stages),
        len(outcome.stages),
        equal_tokens(whole, kept["tokens"]),
        equal_tokens(reference["tokens"], measured["tokens"]),
        outcome.to_dict(),
    )


def equal_tokens(first: Array, second: Array) -> int:
    """How many greedy tokens [1, n] are equal before the first that is not: later ones follow from it."""
    if first.shape != second.shape:
        return 0
    return int(np.cumprod(first[0] == second[0]).sum())


def _result(found: dict[str, Found], failed: dict[str, str], cut: Cut, settings: Settings) -> Result:
    figures = {
        "ratio": RATIO,
        "cut": asdict(cut),
        "families": {name: asdict(one) | {"ok": one.exactness.ok} for name, one in found.items()},
        "failed": failed,
    }
    tables = (_token_table(found), _exactness_table(found), _target_table(found), _line_table(found))
    left = (
        "everything cut down, for tests"
        if cut.tiny
        else "published vision side, decoder of two narrow layers"
    )
    notes = (
        f"Models: {left}{'' if cut.depth is None else f', towers of {cut.depth} layers'}; random weights.",
        *(f"{name}: {FAMILY_MODELS[name].about}." for name in found),
        "Tokens: placeholders in the prompt for one picture, newline vectors included, from its size alone.",
        "Stages: those of runtime.parity within tolerance, PyTorch and the bundle on one picture of blocks "
        f"of colour, at ratio {RATIO:g}.",
        f"Greedy tokens, of {NEW_TOKENS}: equal to those of generate in transformers with every token kept, "
        f"and to those of the PyTorch reference at ratio {RATIO:g}, up to the first that differs.",
        "By target: errors and warnings of fopru_graph.lint; what TensorRT for RTX says is parsed, and built "
        "for SM86 without a GPU.",
        *(f"{name}, {said}" for name, one in found.items() for said in graver_findings(one.lint)),
        *(f"{name} failed: {message}" for name, message in failed.items()),
    )
    return Result(
        _name(found, failed, cut), describe_environment(settings.threads), figures, {}, tables, notes
    )


def _name(found: dict[str, Found], failed: dict[str, str], cut: Cut) -> str:
    """Of the files: what is not about all families as published is kept apart."""
    some = [] if len(found) + len(failed) == len(FAMILY_MODELS) else [*found, *failed]
    depth = [] if cut.depth is None else [f"depth{cut.depth}"]
    return "-".join(["families", *some, *depth, *(["tiny"] if cut.tiny else [])])


def _token_table(found: dict[str, Found]) -> Table:
    rows = tuple(
        (
            name if place == 0 else "",
            f"{one.width} x {one.height}",
            str(one.units),
            str(one.before),
            str(one.after),
            f"{one.after / one.before:.3f}",
        )
        for name, family in found.items()
        for place, one in enumerate(family.tokens)
    )
    columns = ("family", "picture, width x height", "units", "tokens", "kept", "part")
    return Table(f"Visual tokens before and after, ratio {RATIO:g}", columns, rows)


def _exactness_table(found: dict[str, Found]) -> Table:
    rows = tuple(
        (
            name,
            f"{one.exactness.picture[1]} x {one.exactness.picture[0]}",
            f"{one.exactness.within} of {one.exactness.compared}",
            f"{one.exactness.tokens_whole}/{NEW_TOKENS}",
            f"{one.exactness.tokens_pruned}/{NEW_TOKENS}",
        )
        for name, one in found.items()
    )
    columns = ("family", "picture", "stages within tolerance", "tokens, ratio 1", f"tokens, ratio {RATIO:g}")
    return Table("The bundle against PyTorch", columns, rows)


def _target_table(found: dict[str, Found]) -> Table:
    rows = tuple(
        (name, *(_verdict(one.lint[target]) for target in TARGETS), _rtx_cell(one.rtx))
        for name, one in found.items()
    )
    return Table("The pruned encoder by target", ("family", *TARGETS, "TensorRT for RTX says"), rows)


def _verdict(report: LintReport) -> str:
    counts = {severity: len(report.of(severity)) for severity in SEVERITIES[:2]}
    return ", ".join(f"{count} {severity}s" for severity, count in counts.items() if count) or "ok"


def _rtx_cell(rtx: RtxFound) -> str:
    if rtx.parse_seconds is None:
        return rtx.verdict
    built = "" if rtx.build_seconds is None else f", build {rtx.build_seconds:.1f} s"
    return f"{rtx.verdict} (parse {rtx.parse_seconds:.1f} s{built})"


def _line_table(found: dict[str, Found]) -> Table:
    rows = tuple(
        (name, *(f"{total} ({code})" for total, code in one.lines.values())) for name, one in found.items()
    )
    return Table("Lines of a family, of them code", ("family", "export/families/", "runtime/layouts/"), rows)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 1 when a family failed or is not exact."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.families", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--families", nargs="+", choices=list(FAMILY_MODELS), default=list(FAMILY_MODELS), help="default: all"
    )
    parser.add_argument("--tiny", action="store_true", help="everything small")
    parser.add_argument("--depth", type=int, help="layers of the towers (default: as published)")
    parser.add_argument("--no-build", action="store_true", help="only parse with TensorRT for RTX")
    add_common_options(parser, rounds=None)
    exact = True

    def body(options: argparse.Namespace) -> None:
        nonlocal exact
        settings = settings_from(options)
        models = [FAMILY_MODELS[name] for name in dict.fromkeys(options.families)]
        cut = Cut(tiny=options.tiny, depth=options.depth)
        result = measure_families(models, cut, settings, build_rtx=not options.no_build)
        report(result, settings)
        status(f"written: {write_markdown(result, settings.results)}")
        figures = result.figures
        exact = not figures["failed"] and all(one["ok"] for one in figures["families"].values())

    return run_script(parser, body, arguments) or int(not exact)


if __name__ == "__main__":
    sys.exit(main())
