"""The sub-commands of `python -m fopru_graph`, one module each."""

from __future__ import annotations

import argparse
from typing import Protocol, cast

from fopru_graph.commands import inspect, lint, prune, splice

__all__ = ["COMMANDS", "Command"]


class Command(Protocol):
    """What a module of this folder has; `HELP` is one sentence or two."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare all arguments but `--json`."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it and print the report; returns the exit code."""


COMMANDS: dict[str, Command] = {
    "inspect": cast("Command", inspect),
    "prune": cast("Command", prune),
    "lint": cast("Command", lint),
    "splice": cast("Command", splice),
}
"""By name, in the order of a first use."""
