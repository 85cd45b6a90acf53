"""`python -m runtime.check BUNDLE`: replay the bundle's golden tensors on this device, without PyTorch.

Prints every stage with its difference and tolerance, names the first that diverges, and exits 1 then.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from runtime.backend import NATIVE_BACKENDS, available_backends
from runtime.bundle import Bundle, load_bundle
from runtime.costs import judged
from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.golden import load_golden, load_record
from runtime.output import exit_code_of
from runtime.parity import ParityReport, compare, format_report, measure
from runtime.plan import Amount
from runtime.reuse import NO_REUSE

__all__ = ["check_bundle", "main"]


def check_bundle(bundle: Bundle, backend: str = "onnxruntime", threads: int | None = None) -> ParityReport:
    """Replay the golden request through the bundle.

    Raises:
        BundleError: no golden tensors, or damaged ones.
        FopruError: a stage cannot run at all.
    """
    if backend in NATIVE_BACKENDS:
        raise BackendError(f"the C++ runtime checks itself: run `fopru check {bundle.path}`")
    golden, reference = load_golden(bundle)
    generator = Generator(bundle, backend, threads, NO_REUSE)
    images = [bundle.file(name) for name in golden.images]
    amount = Amount(golden.ratio, golden.tokens)
    measured, units = measure(generator, images, golden.prompt, amount, golden.new_tokens)
    manifest = bundle.manifest
    precisions = {name: graph.precision for name, graph in manifest.graphs.items()}
    return judged(compare(reference, measured, units), precisions, manifest.parity)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all stages agree, 1 one diverges, 2 it could not run, 130 Ctrl-C, 141 no reader."""
    parser = argparse.ArgumentParser(prog="python -m runtime.check", description=__doc__.split("\n\n")[0])
    parser.add_argument("bundle", help="directory with bundle.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--backend", default="onnxruntime", help=f"one of {', '.join(available_backends())}")
    parser.add_argument("--threads", type=int, help="threads inside one operator (default: all cores)")
    args = parser.parse_args(argv)
    return exit_code_of(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle)
    report = check_bundle(bundle, args.backend, args.threads)
    _print(bundle, report, args.json)
    return 0 if report.ok else 1


def _print(bundle: Bundle, report: ParityReport, as_json: bool) -> None:
    if as_json:
        text = json.dumps({"bundle": str(bundle.path), **report.to_dict()}, indent=2)
    else:
        title = f"{bundle.path}: {bundle.manifest.model.name} against {load_record(bundle).reference}"
        text = f"{title}\n{format_report(report)}"
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
