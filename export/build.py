"""`python -m export.build`: a Hugging Face checkpoint becomes a pruned bundle that has been compared with
PyTorch.

Exit codes: 0 done, 1 the bundle was written but a stage diverges from PyTorch, a component is less exact
than its precision should be, or the target refuses a graph, 2 an error in one sentence, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from calib.errors import CalibError
from export.errors import ExportError
from export.options import (
    AGGREGATIONS,
    DEFAULT_MODEL,
    DEFAULT_RATIO,
    NEWLINE_POLICIES,
    OPSETS,
    POSITION_POLICIES,
    ROW_SCOPES,
    STRATEGIES,
    TARGETS,
    BuildOptions,
    precision_for,
)

if TYPE_CHECKING:
    from rich.console import Console

    from export.report import BuildReport
    from export.steps import Steps

__all__ = ["BuildOptions", "build", "check_environment", "guarded", "main"]

_NEEDED = (
    *("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "numpy", "rich"),
    *("onnxruntime", "tokenizers", "PIL"),  # of the runtime, which answers at the end of a build
)


def build(options: BuildOptions, steps: Steps | None = None, *, verbose: bool = False) -> BuildReport:
    """Make a bundle; see `BuildOptions`. Nothing is printed unless `steps` has a console.

    Raises:
        ExportError: options, checkpoint or output that cannot be used.
        fopru_graph.GraphError: the encoder graph cannot be pruned.
        runtime.errors.FopruError: the finished bundle cannot be run.
    """
    from export.pipeline import run_build
    from export.steps import Steps, quiet_libraries

    with quiet_libraries(verbose):
        return run_build(options, steps or Steps())


def check_environment() -> None:
    """Refuse an environment that cannot export.

    Raises:
        ExportError: Python is too old, or a package is missing.
    """
    if sys.version_info < (3, 11):  # noqa: UP036  # pip would refuse, a clone does not
        found = ".".join(map(str, sys.version_info[:2]))
        raise ExportError(
            f"export needs Python 3.11 or newer, and this is {found}: use a newer Python here; running a "
            "bundle needs 3.10 only"
        )
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"export needs {', '.join(missing)}, not installed here: run `pip install 'fopru-edge[export]'`"
        )


def guarded(run: Callable[[Sequence[int]], int]) -> int:
    """Run a command: a deliberate error becomes one line on stderr and exit code 2, a signal 130.

    `run` gets the list of signals received so far.
    """
    with _signals() as received:
        try:
            check_environment()
            return run(received)
        except BaseException as error:
            # A signal that arrives inside torch comes out as whatever error torch makes of it.
            if received or isinstance(error, KeyboardInterrupt):
                print("interrupted", file=sys.stderr)
                # An interrupt that left an exec(), as in the making of a dataclass, would make CPython end
                # the process
                # by SIGINT whatever is returned here; an exec() that ends well makes it forget.
                exec("")
                return 130
            message = _message(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            return 2


@contextmanager
def _signals() -> Iterator[list[int]]:
    """While open, SIGINT and SIGTERM raise KeyboardInterrupt and are noted, so that both clean up alike."""
    received: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _message(error: BaseException) -> str | None:
    """The sentence of a deliberate error, None for a bug."""
    if isinstance(error, ExportError | CalibError):
        return str(error)
    from fopru_graph import GraphError
    from runtime.errors import FopruError

    if isinstance(error, GraphError | FopruError):
        return str(error)
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{place}: check the path and its permissions"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    args = _parser().parse_args(argv)
    return guarded(lambda received: _run(args, received))


def _run(args: argparse.Namespace, received: Sequence[int]) -> int:
    options = BuildOptions(
        model=args.model,
        output=args.output,
        ratio=args.ratio,
        tokens=args.tokens,
        strategy=args.strategy,
        aggregation=args.aggregation,
        layer=args.layer,
        position_ids=args.position_ids,
        row_scope=args.row_scope,
        newline=args.newline,
        opset=args.opset,
        target=args.target,
        precision=precision_for(args.target, args.precision),
        images=tuple(args.image),
        prompt=args.prompt,
    )
    from rich.console import Console

    from export.report import print_report
    from export.steps import Steps

    # The stream is named once: exporters are silenced by replacing sys.stderr, which must not reach the
    # spinner.
    progress: Console = Console(file=sys.stderr)
    report = build(options, Steps(progress, lambda: bool(received)), verbose=args.verbose)
    if args.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_report(report, Console())
    for failure in report.failures:
        progress.print(f"the bundle was written, but {failure}", style="red", markup=False, soft_wrap=True)
    return 0 if report.ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.build",
        description="Make a bundle with pruned visual tokens from a Hugging Face checkpoint.",
        epilog="Exit codes: 0 done, 1 written but a stage diverges from PyTorch, a component is less exact "
        "than the floor of its precision, or the target refuses a graph, 2 an error, 130 Ctrl-C.",
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="DIR|HUB_ID",
        help="checkpoint directory or hub id (default: %(default)s)",
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--ratio",
        type=float,
        metavar="R",
        help=f"fraction of the visual tokens that is KEPT by default, in (0, 1] (default: {DEFAULT_RATIO}); "
        "every request may choose another",
    )
    amount.add_argument(
        "--tokens", type=int, metavar="N", help="visual tokens kept per image, instead of --ratio"
    )
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="rank",
        help="best tokens, or best rows (default: %(default)s)",
    )
    parser.add_argument(
        "--aggregation",
        choices=AGGREGATIONS,
        default="col_mean",
        help="how attention becomes a score (default: %(default)s)",
    )
    parser.add_argument(
        "--layer",
        type=int,
        metavar="L",
        help="0-based encoder layer that scores (default: the last one that feeds the projector and looks at "
        "the whole image)",
    )
    parser.add_argument(
        "--position-ids",
        choices=POSITION_POLICIES,
        help="count the pruned prompt anew, or keep the positions of the unpruned one (default: the model "
        "family's)",
    )
    parser.add_argument(
        "--row-scope",
        choices=ROW_SCOPES,
        default="tile",
        help="strategy row compares the rows of a tile, or those of all tiles side by side "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--newline",
        choices=NEWLINE_POLICIES,
        help="newline vectors that stay: all, those of lines with a kept token, or none (default: keep_all)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="bundle directory (default: bundles/<model name>); an older bundle is replaced",
    )
    parser.add_argument(
        "--opset",
        type=int,
        choices=OPSETS,
        default=20,
        help="20 runs anywhere, 23 has attention as one op (default: %(default)s)",
    )
    parser.add_argument(
        "--target",
        choices=TARGETS,
        help="where it is to run: what cannot run there is left out, and what its parser would refuse fails "
        "the build (default: any)",
    )
    parser.add_argument(
        "--precision",
        metavar="SPEC",
        help="fp32, fp16, bf16 (TensorRT), int8 or int4 (weights alone; with a TensorRT --target int4 of the "
        "decoder), for all graphs or per part, as in vision=fp16,decoder=int4; int8 and int4 take "
        ":block=32|128, symmetric|asymmetric, accuracy=0|4 "
        "(default: fp16 with a TensorRT --target, else fp32)",
    )
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="picture for the golden tensors, may be repeated",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="question for the golden tensors")
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON on stdout, nothing else"
    )
    parser.add_argument("--verbose", action="store_true", help="show what transformers has to say")
    return parser


if __name__ == "__main__":
    sys.exit(main())
