"""Logits of the float32 model in PyTorch: what those of converted graphs are compared with."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.precision.loss import LossCase

__all__ = ["StoredLogits", "torch_logits"]


def torch_logits(model: Any, case: LossCase) -> npt.NDArray[np.float32]:
    """float32 [S, V] of a loaded transformers model."""
    import torch

    with torch.no_grad():
        embeds = model.get_input_embeddings()(torch.from_numpy(case.ids)[None])
        if case.visual is not None:
            embeds[0, torch.from_numpy(case.visual)] = torch.from_numpy(case.features)
        axes = 1 if case.positions is None else len(case.positions)
        places = np.arange(len(case.ids))[None] if case.positions is None else case.positions
        positions = torch.from_numpy(places if axes == 1 else places[:, None])
        logits = model(inputs_embeds=embeds, position_ids=positions, use_cache=False).logits[0]
    result: npt.NDArray[np.float32] = logits.float().numpy()
    return result


class StoredLogits:
    """Logits of a model that is about to be freed, in a file without a name.

    They are 300 MB at a vocabulary of 152,000.
    """

    def __init__(self, model: Any, cases: Sequence[LossCase], folder: Path) -> None:
        """Runs the model on every one of `cases`, which alone it can be asked for."""
        self._rows: list[npt.NDArray[np.float32]] = []
        with tempfile.TemporaryFile(dir=folder) as file:
            for case in cases:
                logits, start = torch_logits(model, case), file.tell()
                logits.tofile(file)
                file.flush()
                self._rows.append(np.memmap(file, np.float32, "r", start, logits.shape))
        self.cases = tuple(cases)
        self._number = {id(case): number for number, case in enumerate(self.cases)}

    def __call__(self, case: LossCase) -> npt.NDArray[np.float32]:
        return self._rows[self._number[id(case)]]
