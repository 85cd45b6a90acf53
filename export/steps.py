"""Progress of a build: named, timed steps, shown or not; and silence for chatty libraries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Steps", "quiet_libraries"]


class Steps:
    """Times steps in order; with a console, a spinner for the current one and a line for each one done."""

    def __init__(
        self, console: Console | None = None, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        """`interrupted` is asked around every step: libraries may swallow a KeyboardInterrupt."""
        self._console = console
        self._interrupted = interrupted
        self._done: list[tuple[str, float]] = []

    @property
    def timings(self) -> tuple[tuple[str, float], ...]:
        """(name, seconds) of the finished steps."""
        return tuple(self._done)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step; a step that raises is not counted.

        Raises:
            KeyboardInterrupt: an interruption was noted before the step or during it.
        """
        self._check()
        start = time.perf_counter()
        if self._console is None:
            yield
        else:
            with self._console.status(f"{name} …"):
                yield
        self._check()
        seconds = time.perf_counter() - start
        self._done.append((name, seconds))
        if self._console is not None:
            self._console.print(f"[green]✓[/] {name:44} [dim]{seconds:6.1f} s[/]", highlight=False)

    def _check(self) -> None:
        if self._interrupted():
            raise KeyboardInterrupt


@contextmanager
def quiet_libraries(verbose: bool) -> Iterator[None]:
    """Keep the progress bars and remarks of transformers off the terminal, unless `verbose`."""
    if verbose:
        yield
        return
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
