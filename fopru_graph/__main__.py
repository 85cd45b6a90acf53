"""`python -m fopru_graph`: inspect, prune, lint and splice ONNX vision encoders.

Exit codes: 0 done, 1 lint found errors, 2 an error in one sentence on stderr, 130 Ctrl-C, 141 the reader of
stdout left.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence

__all__ = ["main"]

_NEEDED = ("numpy", "onnx", "onnx_ir", "onnx_shape_inference", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    try:
        refusal = _unfit_environment()
        if refusal:
            return _refuse(refusal)
        args = _parser().parse_args(argv)
        run: Callable[[argparse.Namespace], int] = args.run
        code = run(args)
        sys.stdout.flush()  # here, where a reader that left can still be handled
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # What is still buffered would raise again when Python closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message = _sentence(error)
        if message is None:
            raise
        return _refuse(message)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _unfit_environment() -> str:
    """Why this Python cannot run the commands, or ""."""
    if sys.version_info < (3, 11):  # noqa: UP036  # pip would refuse, a clone does not
        found = ".".join(map(str, sys.version_info[:2]))
        return (
            f"fopru_graph needs Python 3.11 or newer, and this is {found}: use a newer Python here; a "
            "pruned graph runs without fopru_graph"
        )
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"fopru_graph needs {', '.join(missing)}, not installed here: run "
            "`pip install 'fopru-edge[graph]'`"
        )
    return ""


def _sentence(error: Exception) -> str | None:
    """The sentence of a deliberate error, None for a bug."""
    from fopru_graph.errors import GraphError

    if isinstance(error, GraphError):
        return str(error)
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{place}: check the path and its permissions"
    return None


def _parser() -> argparse.ArgumentParser:
    from fopru_graph.commands import COMMANDS

    parser = argparse.ArgumentParser(
        prog="python -m fopru_graph",
        description="Prune the visual tokens of an exported ONNX vision encoder, inside its graph.",
        epilog="Exit codes: 0 done, 1 lint found errors, 2 an error, 130 Ctrl-C. "
        "Step by step: docs/prune_your_encoder.md",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(sub)
        sub.add_argument(
            "--json", action="store_true", help="print the report as JSON on stdout, nothing else"
        )
        sub.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
