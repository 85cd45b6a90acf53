"""`python -m runtime.check BUNDLE`: replay the bundle's golden tensors on this device, without PyTorch.

Prints every stage with its difference and tolerance, names the first that diverges, and exits 1 then.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from runtime.backend import available_backends
from runtime.bundle import Bundle, load_bundle
from runtime.errors import FopruError
from runtime.generator import Generator
from runtime.golden import load_golden
from runtime.parity import ParityReport, compare, format_report, measure

__all__ = ["check_bundle", "main"]


def check_bundle(bundle: Bundle, backend: str = "onnxruntime", threads: int | None = None) -> ParityReport:
    """Replay the golden request through the bundle.

    Raises:
        BundleError: no golden tensors, or damaged ones.
        FopruError: a stage cannot run at all.
    """
    golden, reference = load_golden(bundle)
    generator = Generator(bundle, backend, threads)
    images = [bundle.file(name) for name in golden.images]
    measured = measure(generator, images, golden.prompt, golden.num_keep, golden.new_tokens)
    grid = bundle.manifest.vision.grid
    row_length = grid[1] if grid is not None and bundle.manifest.pruning.strategy == "row" else None
    return compare(reference, measured, row_length)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 every stage agrees, 1 a stage diverges, 2 the check could not run, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m runtime.check", description=__doc__.split("\n\n")[0])
    parser.add_argument("bundle", help="directory with bundle.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--backend", default="onnxruntime", help=f"one of {', '.join(available_backends())}")
    parser.add_argument("--threads", type=int, help="threads inside one operator (default: all cores)")
    args = parser.parse_args(argv)
    try:
        bundle = load_bundle(args.bundle)
        report = check_bundle(bundle, args.backend, args.threads)
    except FopruError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if args.json:
        print(json.dumps({"bundle": str(bundle.path), **report.to_dict()}, indent=2))
    else:
        print(f"{bundle.path}: {bundle.manifest.model.name} against {load_golden(bundle)[0].reference}")
        print(format_report(report))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
