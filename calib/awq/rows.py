"""What products of a decoder read on some prompts: mean magnitudes of channels, and some rows as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calib.errors import DataError, RunError
from calib.precision.bundle import CaseFeeds
from calib.precision.loss import LossCase
from calib.ranges.observing import ObservingSession
from runtime.backend import Array

__all__ = ["ROWS", "Rows", "collect_rows"]

ROWS = 512
"""Rows kept of each activation, over all prompts."""


class Rows:
    """One activation with `width` channels; rows lie in a file of their own, so that those of all layers take
    no memory."""

    def __init__(self, file: Path, width: int, limit: int) -> None:
        """Create the file; it belongs to the caller."""
        self._kept = np.memmap(file, np.float32, "w+", shape=(limit, width))
        self._sums, self._seen, self._rows = np.zeros(width), 0, 0

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """float64 [width]: mean magnitudes over every row that was seen."""
        return self._sums / max(1, self._seen)

    @property
    def kept(self) -> npt.NDArray[np.float32]:
        """float32 [rows, width], in memory."""
        return np.array(self._kept[: self._rows])

    def add(self, values: Array, share: int) -> None:
        """Add [..., width]; `share` rows at most are kept, at random places, the same in every run.

        Raises:
            RunError: a value is not finite.
        """
        rows = values.reshape(-1, values.shape[-1])
        if not np.isfinite(rows).all():
            raise RunError(
                "an activation of the decoder is not finite on this data: check the bundle with "
                "`python -m runtime.check`"
            )
        self._sums += np.abs(rows).sum(axis=0, dtype=np.float64)
        self._seen += len(rows)
        count = min(share, len(rows), len(self._kept) - self._rows)
        # Evenly spaced ones would be the first token of every prompt, which is a case apart.
        places = np.random.default_rng(self._seen).choice(len(rows), count, replace=False)
        self._kept[self._rows : self._rows + count] = rows[places]
        self._rows += count


def collect_rows(
    graph: Path,
    feeds: CaseFeeds,
    widths: Mapping[str, int],
    cases: Sequence[LossCase],
    folder: Path,
) -> dict[str, Rows]:
    """Run the float32 decoder on every case once.

    Args:
        graph: the decoder that `feeds` are for.
        feeds: makes the decoder's inputs of a case.
        widths: channels of the activations to look at, by tensor name.
        cases: prompts with their answers, pruned visual tokens in their places.
        folder: where rows lie; it must outlive the result.

    Raises:
        DataError: no case.
        RunError: a value is not finite.
        BackendError: ONNX Runtime cannot open the graph.
    """
    if not cases:
        raise DataError("there is no prompt to take activations of the decoder from: check --data")
    share = -(-ROWS // len(cases))
    rows = {
        name: Rows(folder / f"rows_{number}", width, min(ROWS, share * len(cases)))
        for number, (name, width) in enumerate(widths.items())
    }

    def seen(tensors: Mapping[str, Array]) -> None:
        for name, values in tensors.items():
            rows[name].add(values, share)

    session: Callable[..., dict[str, Array]] = ObservingSession(graph, tuple(widths), seen, feeds.threads).run
    for case in cases:
        session(feeds(case))
    return rows
