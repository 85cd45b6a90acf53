"""Preflight: what engines need, in bytes by part, against what the device has free. Arithmetic, nothing runs.

    weights      the graphs' ONNX files, weight data included: an engine holds about as much; the LM head is
                 float32 there where the file has 16 bits, and a head tied to the embeddings is a second copy
    KV cache     2 x layers x rows x kv_heads x head_dim, rows in whole blocks of 256
    I/O          every input and output at its greatest profile, without the cache
    activations  of a block: (5 w + 2 m) rows, or the attention where that is more: logits and probabilities,
                 float32, heads x rows x columns each, unfused as in the layer that is scored
    features     visual tokens of earlier pictures, kept on the device: as many as `Reuse` allows by default
    overhead     CUDA context and libraries
    run          all of it; graphs run one after the other in one scratch memory, so the largest counts
    build        2 x weights of one graph (the parser's copy and the serialised engine) + its activations +
                 workspace. A lower bound: field reports of language models have 3 to 4 times the weights
                 (NVIDIA/TensorRT-Edge-LLM issue 30), which is warned about, not refused.

The largest single allocation is the scratch memory of one graph, its widest weight, or one tensor of the
cache. On Jetson a build may want about as much in one piece; where a small board failed, `cma=` helped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runtime import contract
from runtime.errors import EngineError
from runtime.kv_cache import cache_bytes
from runtime.manifest import DecoderInfo, Manifest
from runtime.reuse import Reuse
from runtime.tensorrt.plan import EnginePlan, GraphPlan, InputProfile

__all__ = [
    "BOARDS",
    "BlockSizes",
    "FreeMemory",
    "MemoryNeed",
    "ModelSizes",
    "Preflight",
    "Verdict",
    "free_memory",
    "memory_of",
    "preflight",
    "sizes_from_config",
    "weight_files",
]

MIB, GIB = 1 << 20, 1 << 30
OVERHEAD = 512 * MIB
"""CUDA context, TensorRT and CUDA libraries of one process; to be replaced by what a device reports."""

BUILD_FACTOR, FIELD_FACTOR = 2, 4
_SMALL_BOARD = 12 * GIB  # where a missing contiguous piece ended a build
_FLOAT = 4
_FILE_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5, "w8a8": 1.0, "fp8": 1.0}
_HEAD_BYTES = {**_FILE_BYTES, "fp16": 4.0, "bf16": 4.0}  # in an engine: its product is a float32 island


@dataclass(frozen=True)
class FreeMemory:
    """What a device has, in bytes.

    Attributes:
        total, available: of the system; the GPU's own, where it has some.
        cma_free: contiguous memory, None where the kernel names none.
        unified: CPU and GPU share the memory.
        host: available for the process that builds, where memory is not shared; else None.
        swap: free swap on a disk: what a build may leave there. Compressed memory (zram) is no more memory.
    """

    total: int
    available: int
    cma_free: int | None = None
    unified: bool = True
    host: int | None = None
    swap: int = 0


def _board(gib: float) -> FreeMemory:
    """A Jetson without a desktop: MemTotal as users report it, less 0.9 GiB for the system."""
    return FreeMemory(round(gib * GIB), round((gib - 0.9) * GIB), 256 * MIB)


BOARDS: Mapping[str, FreeMemory] = MappingProxyType(
    {"orin-nano-8gb": _board(7.4), "orin-nx-16gb": _board(15.3), "agx-orin-64gb": _board(61.4)}
)
"""Boards to plan for elsewhere; taken from reports, not measured here."""


@dataclass(frozen=True)
class BlockSizes:
    """What the scratch memory of a transformer block hangs on; `item` is the bytes of an activation."""

    width: int
    mlp: int
    heads: int
    item: int = _FLOAT


@dataclass(frozen=True)
class ModelSizes:
    """Blocks of both towers. `rows_per_token`, `extra_rows`: a unit of N tokens is N times the one plus the
    other in the encoder. `tied`: the LM head is the embedding table, and lies in another graph's file.
    `guessed` names what the configuration does not say."""

    vision: BlockSizes
    text: BlockSizes
    rows_per_token: int = 1
    extra_rows: int = 1
    tied: bool = False
    guessed: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes by part; `weights` and `activations` by graph. `largest` says which allocation that is."""

    weights: dict[str, int]
    kv: int
    io: int
    features: int
    activations: dict[str, int]
    overhead: int
    build: dict[str, int]
    build_field: int
    largest: tuple[str, int]

    @property
    def scratch(self) -> int:
        """Of the graph that needs most: engines take turns in one block."""
        return max(self.activations.values())

    @property
    def run_least(self) -> int:
        """While requests are answered, all engines at once, and nothing is kept of earlier pictures."""
        return sum(self.weights.values()) + self.kv + self.io + self.scratch + self.overhead

    @property
    def run(self) -> int:
        """While requests are answered, with what is kept between them."""
        return self.run_least + self.features

    @property
    def build_peak(self) -> int:
        """At the graph whose build needs most, one at a time."""
        return max(self.build.values()) + self.overhead

    @property
    def build_pinned(self) -> int:
        """Of `build_peak`, what cannot be swapped: one copy of the weights is the parser's and can be."""
        return max(self.build[name] - self.weights[name] for name in self.build) + self.overhead


@dataclass(frozen=True)
class Verdict:
    """`problems` refuse, `warnings` do not; each is a sentence with numbers and the way out."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing refuses."""
        return not self.problems


@dataclass(frozen=True)
class Preflight:
    """What is needed, what is free (None: not known), and what follows."""

    need: MemoryNeed
    free: FreeMemory | None
    verdict: Verdict


def weight_files(manifest: Manifest, graph: str) -> tuple[str, ...]:
    """Files of a graph: the ONNX file, and the data file that it shares with the graph it was made of."""
    file = manifest.graphs[graph].file
    suffix = Path(file).stem.removeprefix(graph)  # of the precision, e.g. _fp16
    owned = Path(contract.data_file(graph))
    data = f"{Path(file).parent.as_posix()}/{owned.name.removesuffix('.onnx_data')}{suffix}.onnx_data"
    return (file, *sorted(name for name in manifest.files if name.startswith(data)))


def sizes_from_config(config: Mapping[str, Any], manifest: Manifest) -> ModelSizes:
    """Sizes of the blocks from `config.json`; what it leaves to a library's default is guessed, and named."""
    decoder, guessed = manifest.decoder, []

    def number(part: Mapping[str, Any], names: tuple[str, ...], default: int, where: str) -> int:
        for name in names:
            value = part.get(name)
            if isinstance(value, int) and value > 0:
                return value
        guessed.append(f"{where}.{names[0]}")
        return default

    def block(part: Mapping[str, Any], width: int, head: int, where: str) -> tuple[int, int, int]:
        return (
            width,
            number(part, ("intermediate_size",), 4 * width, where),
            number(part, ("num_attention_heads", "num_heads"), max(1, width // head), where),
        )

    text, vision = _section(config, "text_config"), _section(config, "vision_config")
    width = number(vision, ("hidden_size", "embed_dim"), decoder.hidden_size, "vision_config")
    seen = BlockSizes(*block(vision, width, 64, "vision_config"), _item(manifest, contract.VISION_ENCODER))
    spoken = BlockSizes(
        *block(text, decoder.hidden_size, decoder.head_dim, "text_config"),
        _item(manifest, _portable(decoder)),
    )
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if not isinstance(tied, bool):
        guessed.append("tie_word_embeddings")
    return ModelSizes(seen, spoken, *_rows_per_token(vision, manifest), tied is not False, tuple(guessed))


def memory_of(plan: EnginePlan, manifest: Manifest, sizes: ModelSizes) -> MemoryNeed:
    """What the engines of a plan need."""
    weights = {
        graph.graph: sum(manifest.files[name].bytes for name in weight_files(manifest, graph.graph))
        for graph in plan.graphs
    }
    name, head, stored = _portable(manifest.decoder), *_head_bytes(manifest)
    weights[name] += head if sizes.tied else head - stored
    activations = {graph.graph: _activations(graph, manifest, sizes) for graph in plan.graphs}
    build = {name: BUILD_FACTOR * weights[name] + activations[name] + plan.workspace for name in weights}
    decoder = manifest.decoder
    kv = cache_bytes(decoder, plan.cache_rows)
    candidates = {
        f"scratch memory of {max(activations, key=activations.__getitem__)}": max(activations.values()),
        "the LM head": head,
        "one tensor of the KV cache": kv // (2 * decoder.layers),
    }
    largest = max(candidates, key=candidates.__getitem__)
    return MemoryNeed(
        weights=weights,
        kv=kv,
        io=sum(_io(graph, plan, manifest) for graph in plan.graphs),
        features=Reuse().features,
        activations=activations,
        overhead=OVERHEAD,
        build=build,
        build_field=FIELD_FACTOR * max(weights.values()),
        largest=(largest, candidates[largest]),
    )


def _head_bytes(manifest: Manifest) -> tuple[int, int]:
    """Of the LM head in an engine and in its file."""
    decoder = manifest.decoder
    precision, count = manifest.graphs[_portable(decoder)].precision, decoder.vocab_size * decoder.hidden_size
    return round(count * _HEAD_BYTES[precision]), round(count * _FILE_BYTES[precision])


def preflight(need: MemoryNeed, free: FreeMemory | None) -> Preflight:
    """Compare; nothing is said about a device that is not known."""
    if free is None:
        return Preflight(need, None, Verdict((), ()))
    problems, warnings = [], []
    less = "give a smaller --max-prompt or --max-images, a lower --max-ratio, or an int4 bundle"
    if need.run_least > free.available:
        problems.append(
            f"running needs {_gib(need.run_least)}, but {_gib(free.available)} of {_gib(free.total)} are "
            f"free: {less}"
        )
    elif need.run > free.available:
        warnings.append(
            f"running needs {_gib(need.run)} once {_gib(need.features)} of visual tokens of earlier pictures "
            f"are kept, but {_gib(free.available)} are free: make the Generator with Reuse(features=0), or "
            f"{less}"
        )
    host = free.available if free.host is None else free.host
    name = max(need.build, key=need.build.__getitem__)
    if need.build_pinned > free.available:
        problems.append(
            f"building {name} needs {_gib(need.build_pinned)} that cannot be swapped, but "
            f"{_gib(free.available)} are free: stop other programs and the desktop, give a smaller "
            "--workspace, or an int4 bundle"
        )
    elif need.build_peak > host + free.swap:
        problems.append(
            f"building {name} needs {_gib(need.build_peak)} at least, but {_gib(host)} and "
            f"{_gib(free.swap)} of swap are free: add {_gib(need.build_peak - host - free.swap)} of swap, "
            "stop other programs and the desktop, or give a smaller --workspace"
        )
    elif need.build_field > host + free.swap:
        warnings.append(
            f"builds of language models were seen to take 3 to 4 times the weights, here up to "
            f"{_gib(need.build_field)}, and {_gib(host + free.swap)} are free, swap included: add swap"
        )
    what, size = need.largest
    if free.cma_free is not None and size > free.cma_free:
        told = (
            f"{what} takes {_gib(size)} in one piece, but {_gib(free.cma_free)} of contiguous memory are "
            f"free: boot with the kernel argument cma={-(-size // MIB // 50) * 50 + 50}M, or {less}"
        )
        (problems if free.total < _SMALL_BOARD else warnings).append(told)
    return Preflight(need, free, Verdict(tuple(problems), tuple(warnings)))


def free_memory(root: Path = Path("/")) -> FreeMemory:
    """Of this machine, from `/proc/meminfo`.

    Raises:
        EngineError: it cannot be read.
    """
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError as error:
        raise EngineError(
            f"the free memory cannot be read ({error}): add --force to build without the check"
        ) from error
    kib = {name: int(value) * 1024 for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    if "MemTotal" not in kib or "MemAvailable" not in kib:
        raise EngineError(
            "/proc/meminfo has no MemTotal and MemAvailable: add --force to build without the check"
        )
    cma = kib.get("CmaFree") if kib.get("CmaTotal") else None
    return FreeMemory(kib["MemTotal"], kib["MemAvailable"], cma, swap=_disk_swap(root))


def _disk_swap(root: Path) -> int:
    """Free bytes of swap files and partitions: `/swapfile file 8388604 1024 -2` is size and used in KiB."""
    try:
        lines = (root / "proc/swaps").read_text().splitlines()[1:]
    except OSError:
        return 0
    words = [line.split() for line in lines if not line.startswith("/dev/zram")]
    return sum((int(each[2]) - int(each[3])) * 1024 for each in words if len(each) >= 4)


def _activations(graph: GraphPlan, manifest: Manifest, sizes: ModelSizes) -> int:
    """Of the profile that needs most: one context switches between them."""
    if graph.graph == contract.EMBED_TOKENS:
        return 0  # a gather, straight into the output
    if graph.graph in (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU):
        layout = manifest.layout
        pixels = graph.profiles[0][contract.PIXEL_VALUES].maximum
        tokens = pixels[1] if layout.unit_tokens is None else layout.unit_tokens
        rows = tokens * sizes.rows_per_token + sizes.extra_rows
        return _block(sizes.vision, pixels[0], rows, rows)
    return max(_decoder_block(profile, manifest.decoder, sizes.text) for profile in graph.profiles)


def _block(block: BlockSizes, batch: int, rows: int, columns: int) -> int:
    """Bytes of a block's widest moment: residual, query, key, value, context beside attention or MLP."""
    attention = 2 * block.heads * rows * columns * _FLOAT
    mlp = 2 * block.mlp * rows * block.item
    return batch * (5 * block.width * rows * block.item + max(attention, mlp))


def _decoder_block(profile: Mapping[str, InputProfile], info: DecoderInfo, block: BlockSizes) -> int:
    rows = profile[contract.INPUTS_EMBEDS].maximum[1]
    total = profile[contract.ATTENTION_MASK].maximum[1]
    # Past and new rows of one layer are put together, and repeated for every query head where these share.
    joined = 2 * total * block.heads * info.head_dim * block.item
    return _block(block, 1, rows, total) + joined + info.vocab_size * _FLOAT


def _io(graph: GraphPlan, plan: EnginePlan, manifest: Manifest) -> int:
    """Buffers of inputs and outputs at their greatest; the cache is counted elsewhere."""
    info, decoder = manifest.graphs[graph.graph], manifest.decoder
    if graph.graph == contract.EMBED_TOKENS:
        return plan.prompt_rows * (8 + _FLOAT * decoder.hidden_size)
    if graph.graph in (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU):
        profile = graph.profiles[0]
        # A mask or a list of windows, of which some tokens are no bytes worth counting.
        inputs = sum(_product(each.maximum) * _FLOAT for each in profile.values() if not each.values)
        units = profile[contract.PIXEL_VALUES].maximum[0]
        kept = (
            profile[contract.NUM_KEEP].maximum[0] if contract.NUM_KEEP in profile else plan.visual.most_tokens
        )
        rows = kept + manifest.layout.prefix_tokens
        scores = plan.visual.most_tokens * _FLOAT if len(info.outputs) > 1 else 0
        return inputs + units * (rows * decoder.hidden_size * _FLOAT + 8 * kept + scores)
    mask = 8 * graph.profiles[0][contract.ATTENTION_MASK].maximum[1]
    positions = 8 * decoder.position_axes * plan.capacity
    return plan.prompt_rows * decoder.hidden_size * _FLOAT + mask + positions + decoder.vocab_size * _FLOAT


def _rows_per_token(vision: Mapping[str, Any], manifest: Manifest) -> tuple[int, int]:
    """(patches of a token, rows besides): patches are merged into tokens after the encoder."""
    layout = manifest.layout
    if layout.unit_tokens is None:
        merged = layout.pixel_shape[2]
        return (merged if isinstance(merged, int) else 1), 0
    patch = vision.get("patch_size")
    patch = patch[0] if isinstance(patch, (list, tuple)) and patch else patch
    height, width = layout.pixel_shape[-2:]
    if not (isinstance(patch, int) and isinstance(height, int) and isinstance(width, int) and patch > 0):
        return 1, 1
    return max(1, -(-(height // patch) * (width // patch) // layout.unit_tokens)), 1


def _item(manifest: Manifest, graph: str) -> int:
    """Bytes of an activation: integers are about weights alone."""
    decoder = manifest.decoder
    # An int4 decoder for TensorRT has the activations of its cache.
    half = graph in decoder.caches and decoder.cache_dtype != "float32"
    return 2 if half or manifest.graphs[graph].precision in ("fp16", "bf16") else _FLOAT


def _portable(decoder: DecoderInfo) -> str:
    return next(graph for graph, kind in decoder.caches.items() if kind == contract.APPEND)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _product(dims: tuple[int, ...]) -> int:
    found = 1
    for dim in dims:
        found *= dim
    return found


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB // 10 else f"{size / MIB:.1f} MiB"
