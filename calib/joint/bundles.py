"""The bundles that are compared: that they are one model, what they are called, what each needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calib.errors import OptionError
from calib.measure.check import ENGINES
from calib.precision import HALVES, Precisions, spoken
from runtime import contract
from runtime.golden import GOLDEN_TENSORS, load_golden

if TYPE_CHECKING:
    from runtime.backend import Array
    from runtime.bundle import Bundle
    from runtime.manifest import Manifest

__all__ = ["Variant", "check_same_model", "labels_of", "precision_text", "variants_of", "weight_bytes"]

_TOKENIZER = "tokenizer.json"
_OF_PRECISION = ("caches", "cache_dtype")  # of the decoder: with the precision, these may change
_PIXELS, _FEATURES, _LOGITS = "pixel_values", "image_features", "logits"  # golden tensors
_NEAR = 1e-3  # of the largest: two machines' float32, and far less than a training step


@dataclass(frozen=True)
class Variant:
    """One precision of the model.

    Attributes:
        key: `Setting.precision` of its measurements; "": the float model.
        label: what people call it.
        bundle: opened.
        pruned, whole: bytes of the graphs and weight files that run with and without pruning.
    """

    key: str
    label: str
    bundle: Bundle
    pruned: int
    whole: int

    def weights(self, ratio: float) -> int:
        """Bytes of the graphs and weight files that run at a ratio."""
        return self.whole if ratio == 1.0 else self.pruned


def variants_of(bundles: Sequence[Bundle], backend: str) -> tuple[Variant, ...]:
    """The float model and its other precisions, in order.

    Raises:
        OptionError: they are not all one model, one is given twice, or the backend cannot open one of them.
        BackendError: the backend is not installed.
        BundleError: golden tensors are damaged.
    """
    check_same_model(bundles)
    for bundle in bundles:
        _check_opens(bundle, backend)
    labels = labels_of(bundles)
    return tuple(
        Variant("" if place == 0 else label, label, bundle, *weight_bytes(bundle, backend))
        for place, (bundle, label) in enumerate(zip(bundles, labels, strict=True))
    )


def check_same_model(bundles: Sequence[Bundle]) -> None:
    """Whether all differ in nothing but precision, and how they prune, and the first is a float model.

    Whether weights are of one checkpoint is seen from golden tensors, which PyTorch made of it in float32.

    Raises:
        OptionError: they do, one folder is there twice, or weights of the first are in 8 or 4 bits.
        BundleError: golden tensors are damaged.
    """
    first, seen = bundles[0], {bundles[0].path.resolve()}
    if any(graph.precision not in ("fp32", *HALVES) for graph in first.manifest.graphs.values()):
        raise OptionError(
            f"{first.path} is in {precision_text(first.manifest)}, and all others are compared with the "
            "first bundle: give the float one first"
        )
    for other in bundles[1:]:
        if other.path.resolve() in seen:
            raise OptionError(f"{other.path} is given twice: give each bundle once")
        seen.add(other.path.resolve())
        differs = _other_manifest(first.manifest, other.manifest) or _other_golden(first, other)
        if differs is not None:
            raise OptionError(
                f"{other.path} is not the model of {first.path}: {differs}: build both of one "
                "checkpoint, and quantise with `python -m calib.quantize`"
            )


def labels_of(bundles: Sequence[Bundle]) -> list[str]:
    """A name for each bundle: its precisions where these tell all apart, else its folder, else its path."""
    choices = (
        [precision_text(bundle.manifest) for bundle in bundles],
        [bundle.path.resolve().name for bundle in bundles],
    )
    for labels in choices:
        if len(set(labels)) == len(labels) and "" not in labels:
            return labels
    return [str(bundle.path) for bundle in bundles]


def precision_text(manifest: Manifest) -> str:
    """`fp16`, or `vision=int8, decoder=int4` where parts differ; those that are fp32 are left out."""
    parts: dict[str, list[str]] = {"vision": [], "embed": [], "decoder": []}
    for name, graph in manifest.graphs.items():
        parts[Precisions.part_of(name)].append(spoken(graph.precision))
    names = {part: "/".join(dict.fromkeys(found)) for part, found in parts.items()}
    if len(set(names.values())) == 1:
        return names["vision"]
    if names["embed"] in (names["decoder"], "fp32"):  # most models share these weights
        del names["embed"]
        if len(set(names.values())) == 1:
            return names["vision"]
    return ", ".join(f"{part}={name}" for part, name in names.items() if name != "fp32")


def weight_bytes(bundle: Bundle, backend: str) -> tuple[int, int]:
    """(with pruning, without): bytes of the graphs that a backend runs for an answer, and of the files with
    their weights; a file that several graphs read counts once.

    Raises:
        BackendError: the backend has no decoder graph that it can run, or is not installed.
        BundleError: a graph reads a file that the manifest does not list.
    """
    from calib.quantize.task import external_files
    from runtime.generator import Generator
    from runtime.reuse import NO_REUSE

    decoder = Generator(bundle, backend, None, NO_REUSE).decoder_graph

    def total(vision: str) -> int:
        graphs = (vision, contract.EMBED_TOKENS, decoder)
        files = {file for graph in graphs for file in external_files(bundle, graph)}
        return sum(bundle.manifest.files[file].bytes for file in files)

    return total(contract.VISION_ENCODER_FOPRU), total(contract.VISION_ENCODER)


def _identity(manifest: Manifest) -> dict[str, Any]:
    """What is the same in every precision of a model, by its name in `bundle.json`."""
    tokenizer = manifest.files.get(_TOKENIZER)
    found: dict[str, Any] = {
        "model.architecture": manifest.model.architecture,
        "tokenizer": None if tokenizer is None else f"that of SHA-256 {tokenizer.sha256[:12]}",
        "layout.kind": manifest.layout.kind,
    }
    for part in ("decoder", "layout", "preprocess", "tokens", "prompt"):
        values = vars(getattr(manifest, part)).items()
        found |= {f"{part}.{name}": value for name, value in values if name not in _OF_PRECISION}
    return found


def _other_manifest(first: Manifest, other: Manifest) -> str | None:
    """What differs that would not in another precision."""
    its = _identity(other)
    return next(
        (
            f"its {what} is {_short(its.get(what))}, not {_short(value)}"
            for what, value in _identity(first).items()
            if its.get(what) != value
        ),
        None,
    )


def _other_golden(first: Bundle, other: Bundle) -> str | None:
    """What differs of two checkpoints. Without golden tensors a bundle is taken at its word: the name of its
    model."""
    if any(GOLDEN_TENSORS not in bundle.manifest.files for bundle in (first, other)):
        name, its_name = (bundle.manifest.model.name for bundle in (first, other))
        return None if name == its_name else f"its model.name is {its_name}, not {name}"
    (record, mine), (its_record, its) = load_golden(first), load_golden(other)
    names = [_PIXELS, _FEATURES, *((_LOGITS,) if record == its_record else ())]
    wrong = next((name for name in names if not _near(mine[name], its[name])), None)
    return None if wrong is None else f"its golden {wrong}, of PyTorch in float32, are others"


def _near(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() <= _NEAR * np.abs(one).max())


def _check_opens(bundle: Bundle, backend: str) -> None:
    """Engines aside, which take minutes to build and are looked at when they are asked for."""
    from runtime.errors import BackendError
    from runtime.generator import Generator
    from runtime.reuse import NO_REUSE

    if backend in ENGINES:
        return
    generator = Generator(bundle, backend, None, NO_REUSE)
    graphs = (contract.VISION_ENCODER_FOPRU, contract.VISION_ENCODER, contract.EMBED_TOKENS)
    for graph in (*graphs, generator.decoder_graph):
        try:
            generator.session(graph)
        except BackendError as error:
            raise OptionError(
                f"{bundle.path} cannot be measured with the backend {backend} ({error}): leave it out, or "
                "give --backend what it was built for"
            ) from error
        generator.release(graph)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
