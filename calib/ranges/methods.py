"""How the magnitudes of an activation become one number: the largest that its scale must hold.

`minmax` takes the greatest magnitude seen. `percentile` and `entropy` cut rare large values off, by the
functions of ONNX Runtime's quantiser (`onnxruntime.quantization.calibrate.HistogramCollector`): the first
keeps that share of all magnitudes, the second minimises the KL divergence between the histogram and its
quantised form (8-bit inference with TensorRT, S. Migacz, GTC 2017).
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.errors import OptionError, RunError, StoreError
from runtime.lazy import require

__all__ = ["METHODS", "Collector", "Method", "parse_method"]

METHODS = ("minmax", "percentile", "entropy")
_BINS, _LEVELS = 2048, 128  # as TensorRT's calibrators; ONNX Runtime's default of 128 bins sees no tails
_PERCENTILE = 99.99
_LEAST_PERCENTILE = 90.0  # below, a scale would cut what a layer says, not its outliers

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Method:
    """`name` is one of `METHODS`; `percentile` is of magnitudes kept, in percent."""

    name: str = "minmax"
    percentile: float = _PERCENTILE

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise OptionError(
                f"ranges is {self.name!r}, expected one of {', '.join(METHODS)}, as in percentile:99.99"
            )
        if not _LEAST_PERCENTILE <= self.percentile <= 100.0:  # also true for NaN
            raise OptionError(
                f"the percentile of ranges is {self.percentile}, expected {_LEAST_PERCENTILE:g} to 100, "
                f"as in percentile:{_PERCENTILE}"
            )

    def text(self) -> str:
        """As on the command line; percentiles that differ have texts that differ."""
        return f"{self.name}:{self.percentile!r}" if self.name == "percentile" else self.name


def parse_method(text: str) -> Method:
    """Read `--ranges`: `minmax`, `percentile`, `percentile:99.9` or `entropy`.

    Raises:
        OptionError: an unknown method, or a percentile that is no number or out of range.
    """
    name, colon, value = text.partition(":")
    if not colon:
        return Method(name)
    if name != "percentile":
        raise OptionError(f"ranges is {text!r}, but only percentile takes a number: as in percentile:99.99")
    try:
        return Method(name, float(value))
    except ValueError:
        raise OptionError(
            f"the percentile of ranges is {value!r}, expected a number, as in percentile:99.99"
        ) from None


class Collector:
    """What was seen of some tensors so far. `state` and `restore` carry it over to another process: numbers
    come out the same, to the last bit, wherever a run was cut."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self._greatest: dict[str, np.float32] = {}
        self._histograms: Any = None
        if method.name != "minmax":
            quantiser = require("onnxruntime.quantization.calibrate", "onnxruntime")
            self._histograms = quantiser.HistogramCollector(
                method=method.name,
                symmetric=True,
                num_bins=_BINS,
                num_quantized_bins=_LEVELS,
                percentile=method.percentile,
                scenario="same",
            )

    def update(self, tensors: Mapping[str, _Array]) -> None:
        """Add values, float32 of any shape, by tensor name.

        Raises:
            RunError: a value is not finite.
        """
        for name, values in tensors.items():
            if values.size == 0:
                continue
            greatest = np.abs(values).max()
            if not np.isfinite(greatest):
                raise RunError(
                    f"the activation {name} is not finite on this sample: check the bundle with "
                    "`python -m runtime.check`"
                )
            self._greatest[name] = max(self._greatest.get(name, np.float32(0)), np.float32(greatest))
            if self._histograms is not None:
                known = self._histograms.histogram_dict
                with contextlib.redirect_stdout(io.StringIO()):  # it tells of every call
                    self._histograms.collect({name: np.asarray(values, np.float32)})
                while len(known[name][0]) > 2 * _BINS:
                    known[name] = _coarser(known[name])

    def amax(self) -> dict[str, float]:
        """Greatest magnitude to represent, by tensor; tensors that were 0 throughout are left out."""
        found = {name: float(value) for name, value in self._greatest.items() if value > 0}
        if self._histograms is None or not found:
            return found
        with contextlib.redirect_stdout(io.StringIO()):
            limits = self._histograms.compute_collection_result()
        # A cut to nothing, of a tensor that is almost everywhere 0, would leave nothing of the rest.
        cut = {name: float(max(abs(limits[name][0]), abs(limits[name][1]))) for name in found}
        return {name: cut[name] if cut[name] > 0 else found[name] for name in found}

    def state(self) -> dict[str, _Array]:
        """Everything, as arrays for an .npz file."""
        names = list(self._greatest)
        arrays: dict[str, _Array] = {
            "names": np.frombuffer(json.dumps(names).encode(), np.uint8),
            "greatest": np.array([self._greatest[name] for name in names], np.float32),
        }
        if self._histograms is not None:
            for number, name in enumerate(names):
                for place, part in enumerate(self._histograms.histogram_dict[name]):
                    arrays[f"{number}.{place}"] = np.asarray(part)
        return arrays

    def restore(self, arrays: Mapping[str, _Array]) -> None:
        """Take over what `state` gave.

        Raises:
            StoreError: it is damaged, or of another method.
        """
        try:
            names = json.loads(bytes(arrays["names"]).decode())
            self._greatest = dict(zip(names, arrays["greatest"], strict=True))
            if self._histograms is not None:
                parts = 4 if self.method.name == "percentile" else 5
                self._histograms.histogram_dict = {
                    name: tuple(_as_it_was(arrays[f"{number}.{place}"]) for place in range(parts))
                    for number, name in enumerate(names)
                }
        except (KeyError, ValueError) as error:
            raise StoreError(
                f"the ranges that were kept are damaged ({error}): run with --fresh to collect them again"
            ) from error


def _coarser(histogram: tuple[Any, ...]) -> tuple[Any, ...]:
    """Neighbouring bins as one. The collector adds bins when larger values come, and its search for the least
    entropy takes their number squared: minutes per tensor, where the first sample happened to be small.

    Magnitudes begin at an edge of 0; values have it in their middle, where it has to stay.
    """
    counts, edges, *limits = histogram
    signed = len(limits) == 3
    width = edges[-1] - edges[-2]
    if len(counts) % (4 if signed else 2):
        before = [edges[0] - width] if signed else []
        counts = np.concatenate([[0] * signed, counts, [0]]).astype(counts.dtype)
        edges = np.concatenate([before, edges, [edges[-1] + width]]).astype(edges.dtype)
        if signed:
            limits[2] = np.asarray(limits[2] + width, edges.dtype)
    return (counts.reshape(-1, 2).sum(axis=1), edges[::2], *limits)


def _as_it_was(array: _Array) -> _Array:
    """A number is a 0-d array in a file; NumPy's scalars are what the collector makes."""
    number: _Array = array[()]
    return number
