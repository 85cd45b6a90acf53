"""What is quantised, on what: opened and checked before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from calib.data.sample import Data
from calib.errors import OptionError
from calib.precision import CALIBRATED, Precision, Precisions, spoken
from calib.quantize.memory import Memory, key_of
from calib.quantize.options import QuantizeOptions
from calib.quantize.split import Split, split_samples
from calib.quantize.targets import decoders_of
from runtime import contract
from runtime.errors import BundleError
from runtime.lazy import require
from runtime.manifest import DecoderInfo

if TYPE_CHECKING:
    from runtime.bundle import Bundle

__all__ = ["VISION", "Task", "external_files", "open_task"]

VISION = (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU)
_LEAST_OPSET = 19  # of QuantizeLinear as `calib.precision.qdq` writes it


@dataclass(frozen=True)
class Task:
    """One quantisation.

    Attributes:
        bundle: float32 in the parts that change.
        change: graphs of the new bundle that change, with what they become, in order.
        decoder: of the new bundle.
        ratio: fraction of tokens kept while ranges are collected and answers compared.
        split: samples.
        memory: what was found before.
        skipped: samples that cannot be run, with why; it grows.
    """

    options: QuantizeOptions
    bundle: Bundle
    change: Mapping[str, Precision]
    decoder: DecoderInfo
    ratio: float
    data: Data
    split: Split
    memory: Memory
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def calibrated(self) -> bool:
        """Whether the vision encoders need ranges of activations."""
        return self.options.precisions.vision.name in CALIBRATED

    @property
    def graphs(self) -> tuple[str, ...]:
        """All graphs of the new bundle, in the order of the old one."""
        caches = self.bundle.manifest.decoder.caches
        return tuple(
            name for name in self.bundle.manifest.graphs if name not in caches or name in self.decoder.caches
        )

    @property
    def precisions(self) -> dict[str, str]:
        """Precision of every graph of the new bundle, by name."""
        graphs = self.bundle.manifest.graphs
        return {
            name: self.change[name].name if name in self.change else graphs[name].precision
            for name in self.graphs
        }

    def source(self, graphs: Sequence[str]) -> str:
        """SHA-256 of graphs of the bundle with their weights, of what else decides what goes into and out
        of them, and of the release of ONNX Runtime, whose last bits differ."""
        manifest = self.bundle.manifest
        names = {name for graph in graphs for name in external_files(self.bundle, graph)}
        own = json.loads(manifest.to_json())
        rest = [own[field] for field in ("preprocess", "layout", "pruning", "prompt", "tokens")]
        release = require("onnxruntime", "onnxruntime").__version__
        return key_of(sorted((name, manifest.files[name].sha256) for name in names), rest, release)


def open_task(options: QuantizeOptions, bundle: Bundle, data: Data) -> Task:
    """Compare what was asked with the bundle.

    Raises:
        OptionError: a part that is quantised already, or a bundle that cannot be had so.
    """
    manifest, precisions = bundle.manifest, options.precisions
    caches = decoders_of(options.tensorrt, precisions.decoder, manifest.decoder.caches)
    change = {}
    for name, info in manifest.graphs.items():
        if name in manifest.decoder.caches and name not in caches:
            continue
        wanted = precisions.of_graph(name)
        if wanted.name in ("fp32", info.precision):
            continue
        if info.precision != "fp32":
            part = Precisions.part_of(name)
            has = spoken(info.precision)
            raise OptionError(
                f"{name} of {bundle.path} is in {has} already, and only float32 is converted: build the "
                f"bundle again with --precision {part}=fp32, or leave {part} out"
            )
        change[name] = wanted
    if not change:
        raise OptionError(
            f"{bundle.path} has the precision {options.text} already: give a bundle in float32, or another "
            "--precision"
        )
    _check_opsets(bundle, change)
    _check_links(bundle, change)
    return Task(
        options,
        bundle,
        change,
        _decoder(manifest.decoder, caches, change, tensorrt=options.tensorrt),
        _ratio(options, bundle),
        data,
        split_samples(data.samples, options.seed),
        Memory(options.work / "precision"),
    )


def external_files(bundle: Bundle, graph: str) -> tuple[str, ...]:
    """A graph and the files with its weights, as the manifest lists them.

    Raises:
        BundleError: it reads a file that the manifest does not list.
    """
    file = bundle.manifest.graphs[graph].file
    folder = Path(file).parent
    tensors = (value.const_value for value in ir.load(bundle.path / file).graph.initializers.values())
    data = {
        (folder / tensor.location).as_posix() for tensor in tensors if isinstance(tensor, ir.ExternalTensor)
    }
    for name in data:
        if name not in bundle.manifest.files:
            raise BundleError(
                f"{graph} of {bundle.path} reads {name}, which bundle.json does not list: build it again"
            )
    return (file, *sorted(data))


def _decoder(
    info: DecoderInfo, caches: dict[str, str], change: Mapping[str, Precision], *, tensorrt: bool
) -> DecoderInfo:
    found = next((change[name] for name in caches if name in change), None)
    half = found is not None and (found.name == "fp16" or (tensorrt and found.weight_only))
    return replace(info, caches=caches, cache_dtype="float16" if half else info.cache_dtype)


def _ratio(options: QuantizeOptions, bundle: Bundle) -> float:
    if options.ratio is not None:
        return options.ratio
    pruning = bundle.manifest.pruning
    if pruning.default_ratio is None:
        has = (
            "no default" if pruning.default_tokens is None else f"{pruning.default_tokens} tokens as default"
        )
        raise OptionError(f"{bundle.path} has {has}, not a ratio: give --ratio, as 0.3")
    return pruning.default_ratio


def _check_opsets(bundle: Bundle, change: Mapping[str, Precision]) -> None:
    for name, precision in change.items():
        if precision.name not in CALIBRATED:
            continue
        opset = ir.load(bundle.graph(name)).opset_imports[""]
        if opset < _LEAST_OPSET:
            raise OptionError(
                f"{name} of {bundle.path} has opset {opset}, and quantised activations need {_LEAST_OPSET}: "
                "build it again with --opset 20"
            )


def _check_links(bundle: Bundle, change: Mapping[str, Precision]) -> None:
    """onnx-ir reads no weights through links, which could lead anywhere, and says so late."""
    for graph in change:
        for name in external_files(bundle, graph):
            path = bundle.path / name
            if path.is_symlink() or path.stat().st_nlink > 1:
                raise OptionError(
                    f"{path} is a link to a file that something else has too, and weights are not read "
                    "through links: copy the bundle with `cp -rL`"
                )
