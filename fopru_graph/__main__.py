"""`python -m fopru_graph`: prune, inspect, lint and splice ONNX graphs.

Exit codes: 0 done, 1 lint found errors, 2 an error in one sentence, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence

__all__ = ["main"]

_NEEDED = ("numpy", "onnx", "onnx_ir", "onnx_shape_inference", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    try:
        _check_environment()
        args = _parser().parse_args(argv)
        run: Callable[[argparse.Namespace], int] = args.run
        return run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2


class _EnvironmentError(Exception):
    """Python or a package is missing."""


def _check_environment() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  # pip would refuse, a clone does not
        found = ".".join(map(str, sys.version_info[:2]))
        raise _EnvironmentError(
            f"fopru_graph needs Python 3.11 or newer, and this is {found}: use a newer Python"
        )
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise _EnvironmentError(
            f"fopru_graph needs {', '.join(missing)}, not installed here: run "
            "`pip install 'fopru-edge[graph]'`"
        )


def _message(error: Exception) -> str | None:
    """The sentence of a deliberate error, None for a defect."""
    if isinstance(error, _EnvironmentError):
        return str(error)
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
        description="Insert FoPru visual-token pruning into an exported vision encoder, and check ONNX graphs.",
        epilog="A walk through: docs/prune_your_encoder.md",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        added = commands.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_options(added)
        added.add_argument("--json", action="store_true", help="print the report as JSON, and nothing else")
        added.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
