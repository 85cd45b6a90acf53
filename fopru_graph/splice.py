"""Joins a vision encoder and a decoder into one graph: pixels and prompt embeddings in, prefill logits out.

For static deployments, where the prompt's template is fixed and one call is wanted. The number of tokens
stays dynamic: `num_keep`, the prompt's parts and the batch vary as before.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from fopru_graph.api import load_graph
from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.errors import GraphFileError, LocateError, OptionError, UnsupportedGraphError
from fopru_graph.files import check_shared_folder, write_model
from fopru_graph.options import IMAGE_FEATURES
from fopru_graph.passes import CleanPass
from fopru_graph.shapes import Dim, dims
from fopru_graph.weights import external_tensors

__all__ = ["PREFIX_EMBEDS", "SUFFIX_EMBEDS", "SpliceOptions", "SpliceReport", "splice", "splice_files"]

PREFIX_EMBEDS, SUFFIX_EMBEDS = "prefix_embeds", "suffix_embeds"
ATTENTION_MASK, POSITION_IDS = "attention_mask", "position_ids"
NUM_LOGITS_TO_KEEP = "num_logits_to_keep"
_PAST = re.compile(r"past_key_values\.\d+\.(key|value)")
_DECODER = "decoder/"
_INT64 = ir.DataType.INT64
_MASK_TYPES = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
_OURS = frozenset({"batch", "total", "prefix", "suffix", "kept_rows"})  # names of sizes in the joined graph


@dataclass(frozen=True)
class SpliceOptions:
    """How to join.

    Attributes:
        features: output of the encoder, [images, rows, D].
        embeds: input of the decoder that takes them, [batch, seq, D].
        images_per_prompt: images n that each prompt has, one behind the other; the encoder's images are then
            batch * n.
        logits: last positions that the decoder computes logits for, if it has `num_logits_to_keep`; 0: all.
    """

    features: str = IMAGE_FEATURES
    embeds: str = "inputs_embeds"
    images_per_prompt: int = 1
    logits: int = 1

    def __post_init__(self) -> None:
        if self.images_per_prompt < 1:
            raise OptionError(f"images_per_prompt is {self.images_per_prompt}: give a number >= 1")
        if self.logits < 0:
            raise OptionError(f"logits is {self.logits}: give a number of last positions, or 0 for all")


@dataclass(frozen=True)
class SpliceReport:
    """What was joined.

    Attributes:
        inputs, outputs: names and dims of the joined graph.
        computed: decoder inputs that the graph now makes itself.
        casts: tensors whose dtype was changed at the seam, in words.
        nodes: of the joined graph.
        weight_files: files that it points to.
    """

    opset: int
    inputs: tuple[tuple[str, tuple[Dim, ...]], ...]
    outputs: tuple[tuple[str, tuple[Dim, ...]], ...]
    computed: tuple[str, ...]
    casts: tuple[str, ...]
    nodes: int
    weight_files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        plain = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def splice_files(
    vision: str | os.PathLike[str],
    decoder: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: SpliceOptions | None = None,
) -> SpliceReport:
    """Join two files into `target`, which appears complete or not at all; weights stay in their files.

    Raises:
        GraphFileError: a file is missing, damaged, in the wrong folder or cannot be written.
        GraphError: as `splice`.
    """
    sources, target = (Path(vision), Path(decoder)), Path(target)
    if target.resolve() in {source.resolve() for source in sources}:
        raise GraphFileError(f"target '{target}' is one of the sources: name another file")
    models = [load_graph(source) for source in sources]
    shared = [sorted({str(tensor.location) for tensor in external_tensors(model)}) for model in models]
    if all(shared) and sources[0].resolve().parent != sources[1].resolve().parent:
        raise GraphFileError(
            f"'{sources[0]}' and '{sources[1]}' lie in two folders, with weight files '{shared[0][0]}' "
            f"and '{shared[1][0]}': put both graphs and their weight files, under two names, in one folder"
        )
    for model, source in zip(models, sources, strict=True):
        check_shared_folder(model, source, target)
    report = splice(models[0], models[1], options)
    write_model(models[0], target)
    return report


def splice(vision: ir.Model, decoder: ir.Model, options: SpliceOptions | None = None) -> SpliceReport:
    """Join a decoder to a vision encoder, in place: `vision` becomes the joined graph, `decoder` is used up.

    The joined graph gets `prefix_embeds` [batch, prefix, D] and `suffix_embeds` [batch, suffix, D], the
    embeddings of the prompt before and behind the images; either may have no rows. It makes the attention
    mask (ones), the positions (0, 1, 2, …: FoPru specification, section 8, `renumber`) and an empty cache.

    Raises:
        LocateError: no such output or input, or it has another rank.
        UnsupportedGraphError: opsets, widths or names do not go together, or the decoder has an input that
            nobody knows.
    """
    options = options or SpliceOptions()
    for model in (vision, decoder):
        if model.functions:
            InlinePass()(model)
    form = "[images, rows, width]"
    features = _port(vision.graph.outputs, options.features, "output of the encoder", form)
    embeds = _port(decoder.graph.inputs, options.embeds, "input of the decoder", "[batch, seq, width]")
    _check(vision, decoder, (features, embeds))
    interface = list(decoder.graph.outputs)
    _keep_apart(vision, decoder)
    builder = GraphBuilder(vision.graph, "splice")
    seam = _Seam(builder, options, features, embeds)
    computed = []
    for value in list(decoder.graph.inputs):
        made = seam.embeddings if value is embeds else seam.computed(value)
        if value is not embeds:
            computed.append(str(value.name).removeprefix(_DECODER))
        value.replace_all_uses_with(made)
    _move(decoder, vision)
    vision.graph.outputs.remove(features)
    vision.graph.outputs.extend(interface)
    vision.ir_version = max(vision.ir_version, decoder.ir_version)
    vision.graph.sort()
    CleanPass().run(vision)
    return SpliceReport(
        opset=vision.graph.opset_imports[""],
        inputs=_named(vision.graph.inputs),
        outputs=_named(vision.graph.outputs),
        computed=tuple(computed),
        casts=tuple(seam.casts),
        nodes=len(vision.graph),
        weight_files=tuple(sorted({str(tensor.location) for tensor in external_tensors(vision)})),
    )


def _named(values: Sequence[ir.Value]) -> tuple[tuple[str, tuple[Dim, ...]], ...]:
    return tuple((str(value.name), dims(value) or ()) for value in values)


def _port(values: Sequence[ir.Value], name: str, what: str, form: str) -> ir.Value:
    found = next((value for value in values if value.name == name), None)
    if found is None:
        known = ", ".join(str(value.name) for value in values)
        raise LocateError(f"there is no {what} '{name}', it has {known}: name it")
    if len(dims(found) or ()) != 3:
        raise LocateError(f"{what} '{name}' has dims {dims(found)}, but it must be {form}")
    return found


def _check(vision: ir.Model, decoder: ir.Model, seam: tuple[ir.Value, ir.Value]) -> None:
    ours, theirs = vision.graph.opset_imports, decoder.graph.opset_imports
    for domain in sorted(ours.keys() & theirs.keys()):
        if ours[domain] != theirs[domain]:
            raise UnsupportedGraphError(
                f"the encoder has opset {ours[domain]} of '{domain or 'ai.onnx'}' and the decoder "
                f"{theirs[domain]}: export both with one opset"
            )
    widths = [(dims(value) or (None,))[-1] for value in seam]
    if None in widths or (all(isinstance(width, int) for width in widths) and widths[0] != widths[1]):
        raise UnsupportedGraphError(
            f"'{seam[0].name}' has width {widths[0]} and '{seam[1].name}' {widths[1]}: they must be of one "
            "model"
        )
    unknown = [value.name for value in decoder.graph.inputs if value is not seam[1] and not _known(value)]
    if unknown:
        raise UnsupportedGraphError(
            f"the decoder has the input '{unknown[0]}', and nobody knows what to feed: known are "
            f"{ATTENTION_MASK}, {POSITION_IDS}, {NUM_LOGITS_TO_KEEP} and past_key_values.N.key and .value"
        )
    through = [value.name for value in decoder.graph.outputs if value.is_graph_input()]
    if through:
        raise UnsupportedGraphError(
            f"the decoder gives its input '{through[0]}' out again: export it without that output"
        )
    for value in decoder.graph.inputs:
        _check_row(value)
    taken = {value.name for value in (*vision.graph.inputs, *vision.graph.outputs)}
    clash = sorted(str(value.name) for value in decoder.graph.outputs if value.name in taken)
    added = [name for name in (PREFIX_EMBEDS, SUFFIX_EMBEDS) if name in taken]
    if clash or added:
        raise UnsupportedGraphError(
            f"'{(clash or added)[0]}' would be twice in the joined graph: rename it in the encoder"
        )


def _check_row(value: ir.Value) -> None:
    """A mask or positions of another form mean something else (added mask, M-RoPE): ones would be wrong."""
    wanted = {ATTENTION_MASK: _MASK_TYPES, POSITION_IDS: _MASK_TYPES[:2]}.get(str(value.name))
    sizes = dims(value)
    if wanted and (sizes is None or len(sizes) != 2 or value.dtype not in wanted):
        kinds = ", ".join(dtype.name for dtype in wanted)
        raise UnsupportedGraphError(
            f"decoder input '{value.name}' is {value.dtype} with dims {sizes}, but only [batch, rows] of "
            f"{kinds} can be made in the graph: export the decoder so, or keep the graphs apart"
        )


def _known(value: ir.Value) -> bool:
    name = str(value.name)
    return name in (ATTENTION_MASK, POSITION_IDS, NUM_LOGITS_TO_KEEP) or _PAST.fullmatch(name) is not None


def _keep_apart(vision: ir.Model, decoder: ir.Model) -> None:
    """No name of one side means something on the other: both were made by exporters that count from 0."""
    outputs = {value.name for value in decoder.graph.outputs}
    borders = {id(value) for value in (*vision.graph.inputs, *vision.graph.outputs)}
    for value in _values(vision.graph):
        ours = str(value.name).startswith(_DECODER) and id(value) not in borders
        if value.name in outputs or ours:
            value.name = f"vision/{value.name}"
        _rename_dims(value, {name: f"vision_{name}" for name in _OURS}, "")
    ports = {id(value) for value in decoder.graph.outputs}
    known = _sizes_we_name(decoder.graph)
    for value in _values(decoder.graph):
        if id(value) not in ports and value.name:
            value.name = f"{_DECODER}{value.name}"
        _rename_dims(value, known, "decoder_")
    for node in ir.traversal.RecursiveGraphIterator(decoder.graph):
        if node.name:
            node.name = f"{_DECODER}{node.name}"


def _sizes_we_name(graph: ir.Graph) -> dict[str, str]:
    """Names of sizes in the decoder → those that the joined graph has for them."""
    found: dict[str, str] = {}
    for value in graph.inputs:
        ours = {ATTENTION_MASK: ("batch", "total"), POSITION_IDS: ("batch", "total")}.get(str(value.name), ())
        for size, name in zip(dims(value) or (), ours, strict=False):
            if isinstance(size, str):
                found[size] = name
    return found


def _values(graph: ir.Graph) -> list[ir.Value]:
    """Everything that has a name, in subgraphs too."""
    values = [*graph.inputs, *graph.initializers.values()]
    for node in ir.traversal.RecursiveGraphIterator(graph):
        values.extend(node.outputs)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                values.extend(attribute.as_graph().inputs)
                values.extend(attribute.as_graph().initializers.values())
    return values


def _rename_dims(value: ir.Value, known: dict[str, str], prefix: str) -> None:
    sizes = dims(value)
    if sizes is None:
        return
    new: list[Dim] = []
    for size in sizes:
        if not isinstance(size, str) or size in known:
            new.append(known[size] if isinstance(size, str) else size)
        elif not prefix:
            new.append(None if known.keys() & set(re.findall(r"\w+", size)) else size)
        else:  # an expression of names is dropped: it would have to be renamed inside
            new.append(f"{prefix}{size}" if size.isidentifier() else None)
    value.shape = ir.Shape(new)


class _Seam:
    """Makes what the decoder is fed.

    Attributes:
        embeddings: [batch, prefix + rows + suffix, D] in the decoder's dtype.
        casts: dtypes that were changed, in words.
    """

    def __init__(
        self, builder: GraphBuilder, options: SpliceOptions, features: ir.Value, embeds: ir.Value
    ) -> None:
        self._builder = builder
        self._options = options
        dtype, width = embeds.dtype or ir.DataType.FLOAT, (dims(embeds) or (None,))[-1]
        self.casts = [] if features.dtype == dtype else [f"{features.name}: {features.dtype} to {dtype}"]
        rows = builder.cast(features, dtype)
        if options.images_per_prompt > 1:
            rows = self._folded(rows, width)
        parts = []
        for name, size in ((PREFIX_EMBEDS, "prefix"), (SUFFIX_EMBEDS, "suffix")):
            value = ir.Value(name=name, shape=ir.Shape(["batch", size, width]), type=ir.TensorType(dtype))
            builder.graph.inputs.append(value)
            parts.append(value)
        made = Made("inputs_embeds", dtype, ("batch", "total", width))
        self.embeddings = builder.op("Concat", [parts[0], rows, parts[1]], made, {"axis": 1})
        self._batch, self._total = (builder.size_1d(self.embeddings, axis) for axis in (0, 1))

    def _folded(self, rows: ir.Value, width: Dim) -> ir.Value:
        """[batch * n, rows, D] → [batch, n * rows, D]."""
        builder = self._builder
        count = builder.ints("images_per_prompt", [self._options.images_per_prompt])
        made = Made("rows_per_prompt", _INT64, (1,))
        long = builder.op("Mul", [builder.size_1d(rows, 1), count], made)
        every, size = builder.ints("every", [-1]), builder.size_1d(rows, 2)
        target = builder.op("Concat", [every, long, size], Made("prompt_shape", _INT64, (3,)), {"axis": 0})
        made = Made("prompt_rows", rows.dtype or ir.DataType.FLOAT, ("batch", None, width))
        return builder.op("Reshape", [rows, target], made)

    def computed(self, value: ir.Value) -> ir.Value:
        """A decoder input that the graph can make itself."""
        name = str(value.name).removeprefix(_DECODER)
        if name == ATTENTION_MASK:
            return self._spread(self._builder.ints("one", [1]), value)
        if name == POSITION_IDS:
            return self._spread(self._positions(), value)
        if name == NUM_LOGITS_TO_KEEP:
            number = np.full((1,) * len(dims(value) or ()), self._options.logits, np.int64)
            return self._builder.cast(self._builder.constant(name, number), value.dtype or _INT64)
        return self._empty_cache(value)

    def _positions(self) -> ir.Value:
        """0, 1, 2, … of all rows, int64 [total]."""
        builder = self._builder
        end = builder.op("Squeeze", [self._total, builder.ints("axis", [0])], Made("end", _INT64, ()))
        limits = [builder.scalar("zero", 0), end, builder.scalar("one", 1)]
        return builder.op("Range", limits, Made("positions", _INT64, ("total",)))

    def _spread(self, row: ir.Value, value: ir.Value) -> ir.Value:
        """A row for every prompt, [batch, total], in the dtype that the decoder takes."""
        builder = self._builder
        shape = builder.op(
            "Concat", [self._batch, self._total], Made("prompt_shape", _INT64, (2,)), {"axis": 0}
        )
        made = Made(str(value.name).removeprefix(_DECODER), _INT64, ("batch", "total"))
        return builder.cast(builder.op("Expand", [row, shape], made), value.dtype or _INT64)

    def _empty_cache(self, value: ir.Value) -> ir.Value:
        """[batch, heads, 0, width], or [batch, 0, heads, width] where time comes first."""
        sizes = dims(value) or ()
        fixed = [isinstance(size, int) for size in sizes]
        if len(sizes) != 4 or fixed[1] == fixed[2] or not fixed[3]:
            raise UnsupportedGraphError(
                f"'{value.name}' has dims {sizes}, but a cache is [batch, heads, past, width] or [batch, "
                "past, heads, width] with heads and width fixed: export the decoder so"
            )
        known = [size if isinstance(size, int) else 0 for size in sizes[1:]]
        builder = self._builder
        rest = builder.ints("cache_dims", known)
        shape = builder.op("Concat", [self._batch, rest], Made("cache_shape", _INT64, (4,)), {"axis": 0})
        made = Made("empty_cache", ir.DataType.FLOAT, ("batch", *known))
        return builder.cast(builder.op("ConstantOfShape", [shape], made), value.dtype or ir.DataType.FLOAT)


def _move(decoder: ir.Model, vision: ir.Model) -> None:
    """Nodes and weights of the decoder go over; opset imports are united."""
    nodes = list(decoder.graph)
    weights = list(decoder.graph.initializers.values())
    decoder.graph.outputs.clear()
    decoder.graph.remove(nodes)
    decoder.graph.initializers.clear()
    for value in weights:
        vision.graph.register_initializer(value)
    vision.graph.extend(nodes)
    for domain, version in decoder.graph.opset_imports.items():
        vision.graph.opset_imports.setdefault(domain, version)
