"""The sub-commands, one module each: `NAME`, `HELP`, `add_options(parser)` and `run(args)`."""

from __future__ import annotations

import argparse
from typing import Protocol, cast

from fopru_graph.commands import inspect, lint, prune, splice

__all__ = ["COMMANDS", "Command"]


class Command(Protocol):
    """What a module of this folder has."""

    NAME: str
    HELP: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


COMMANDS = cast("tuple[Command, ...]", (inspect, prune, lint, splice))
