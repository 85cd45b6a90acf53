"""Checkpoints in 16 bits: weights stay as they are stored, and every number is that of a float32 model.

Widening float16 or bfloat16 to float32 is exact, so it can wait until a weight is used: the matrices of
linear layers and embeddings, nearly all bytes of a model, are kept in 16 bits (the pages of the checkpoint's
own files) and widened one at a time. All else is float32 from the start: norms, biases, convolutions, what a
model computes from its configuration, and a matrix that two modules share, so that it stays one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.checkpoint import matrix_dtypes

__all__ = ["StoredEmbedding", "StoredLinear", "load_stored", "stored_dtype", "weight_count", "weight_names"]

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


def stored_dtype(files: Iterable[Path]) -> torch.dtype | None:
    """The 16-bit dtype of every matrix in these safetensors files; None where any has another one."""
    found = matrix_dtypes(files)
    return _DTYPES.get(found.pop()) if len(found) == 1 else None


def load_stored(architecture: Any, path: Path, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """`architecture.from_pretrained(path, dtype=torch.float32, **options)` with its matrices in `dtype`.

    Args:
        architecture: class of transformers.
        path: checkpoint directory.
        dtype: what its files hold, from `stored_dtype`.
        options: must make `from_pretrained` return a model and its loading info.

    Returns:
        The model and the info. Its modules have the names, attributes and results of the float32 ones.
    """

    class Narrow(architecture):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # In float32: some models compute constants from the default dtype.
            super().__init__(*args, **kwargs)
            # Loading takes each weight's dtype from the model that waits for it, here still without memory.
            for module in _storable(self):
                module.weight = nn.Parameter(module.weight.to(dtype), requires_grad=False)

    Narrow.__name__, Narrow.__module__ = architecture.__name__, architecture.__module__
    model, info = Narrow.from_pretrained(path, dtype=torch.float32, **options)
    model.__class__ = architecture
    scratch = _Scratch()
    for module in _storable(model):
        if module.weight.dtype == dtype:  # not one that loading has untied, as the files hold two
            _keep_stored(module, scratch)
    return model, info


def weight_count(model: nn.Module) -> int:
    """How many numbers a model's weights are, those kept in 16 bits included; shared ones count once."""
    stored = (module for module in model.modules() if isinstance(module, StoredLinear | StoredEmbedding))
    return sum(value.numel() for value in model.parameters()) + sum(
        module.stored.numel() for module in stored
    )


def weight_names(module: nn.Module) -> list[str]:
    """Names of all weights, in the order in which the parameters of a float32 model would come."""
    return [
        f"{prefix}.{own}" if prefix else own
        for prefix, part in module.named_modules()
        for own in (
            *(["weight"] if isinstance(part, _Stored) else []),
            *(name for name, value in part._parameters.items() if value is not None),
        )
    ]


class _Scratch:
    """Room for one float32 matrix, used again by every layer: fresh memory takes longer than the widening."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.float32)

    def widened(self, stored: Tensor) -> Tensor:
        """float32 values of `stored`, valid until the next call."""
        if self._room.numel() < stored.numel():
            self._room = torch.empty(0)  # before the larger one is there
            with torch.inference_mode(False):  # what is made in that mode cannot be written outside of it
                self._room = torch.empty(stored.numel(), dtype=torch.float32)
        return self._room[: stored.numel()].view(stored.shape).copy_(stored)


class _Stored(nn.Module):
    """What both have: the 16-bit matrix as a buffer, under the name of the float32 parameter.

    It is in `buffers()` and `state_dict()` in 16 bits, and in `parameters()` not at all.
    """

    _scratch: _Scratch

    @property
    def stored(self) -> Tensor:
        """The matrix as it is kept."""
        stored = self._buffers["weight"]
        assert stored is not None
        return stored

    @property
    def weight(self) -> Tensor:
        """float32 values of the matrix, computed anew each time."""
        return self.stored.to(torch.float32)


class StoredLinear(_Stored, nn.Linear):  # type: ignore[override]  # `weight` is computed here
    """`nn.Linear` over a 16-bit matrix: float32 in, float32 out. Not to be used from two threads at once."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_exporting():  # as a Cast of the weight, which is folded when it is written
            return functional.linear(input, self.weight, self.bias)
        return functional.linear(input, self._scratch.widened(self.stored), self.bias)


class StoredEmbedding(_Stored, nn.Embedding):  # type: ignore[override]  # `weight` is computed here
    """`nn.Embedding` over a 16-bit table: float32 out; only the rows looked up are widened."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return functional.embedding(input, self.weight, self.padding_idx)
        return functional.embedding(input, self.stored, self.padding_idx).to(torch.float32)


_KINDS = {nn.Linear: StoredLinear, nn.Embedding: StoredEmbedding}
for _plain, _stored in _KINDS.items():  # traced graphs record classes: they are to be the same
    _stored.__module__, _stored.__qualname__ = _plain.__module__, _plain.__qualname__


def _storable(model: Any) -> list[Any]:
    """Plain linear layers and embeddings whose matrix is theirs alone; subclasses may do more with it."""
    tied = {name for pair in model.all_tied_weights_keys.items() for name in pair}
    return [
        module
        for name, module in model.named_modules()
        if type(module) in _KINDS
        and f"{name}.weight" not in tied
        and getattr(module, "max_norm", None) is None
    ]


def _keep_stored(module: Any, scratch: _Scratch) -> None:
    """Make a module over a 16-bit parameter one that widens it: same object, same names, no copy."""
    weight = module._parameters.pop("weight")
    module._buffers["weight"] = weight.detach()
    module.__class__ = _KINDS[type(module)]
    module._scratch = scratch
