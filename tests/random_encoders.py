"""Vision encoders drawn at random: graphs as exporters write them, and the same encoder in float64 numpy.

Nothing here knows `fopru_graph`. A `Sketch` says what is built; `build` makes the graph, `Truth` computes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

__all__ = ["SCOPES", "Sketch", "Truth", "build", "images", "sketches", "weights"]

SCOPES = "pkg.torch.onnx.name_scopes"
PIXELS = 6  # numbers per patch of the input
HIDDEN = 5  # width of the MLP
EPSILON = 1e-5
Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sketch:
    """One encoder; every field is a choice that changes the graph.

    Attributes:
        grid: rows and columns of patches; special rows stand before them.
        join: `one` block of special rows, or `two` that are expanded apart.
        feature_layer: 0-based layer whose output becomes the features; later layers are dead, or a second
            output (`second`) keeps them alive.
        cut: special rows that a Slice takes off the features.
        scale: `mul`, `div`, `q` (a Mul on the queries), `folded` into their weights.
        mask: `none`, `keys` [1, 1, 1, Q], `pairs` [1, 1, Q, Q], `heads` [1, H, Q, Q], `image` (an input
            [images, 1, Q, Q]).
        form: `softmax`, `operator4` or `operator3` (the ONNX operator, of rank 4 or 3).
        packed: Q, K and V are projected `apart`, or at once and taken apart by `split` or `gather`.
        names: nodes carry torch `scopes`, layer numbers in their `names`, or `none`.
        patches: pixels arrive as rows (`matmul`), or as an image for a `conv`.
        positions: whether learnt positions are added; they fix the number of patches.
        fixed_batch, fixed_tokens: whether these sizes are numbers in the graph.
        norm: `op`, or `plain` arithmetic.
        half: whether the graph is float16.
    """

    layers: int = 1
    heads: int = 2
    head_width: int = 4
    grid: tuple[int, int] = (2, 3)
    special: int = 1
    join: str = "one"
    feature_layer: int = 0
    second: bool = False
    cut: int = 1
    scale: str = "mul"
    mask: str = "none"
    form: str = "softmax"
    packed: str = "apart"
    names: str = "scopes"
    patches: str = "matmul"
    positions: bool = True
    fixed_batch: int = 0
    fixed_tokens: bool = True
    norm: str = "op"
    half: bool = False
    opset: int = 20
    seed: int = 0

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    @property
    def tokens(self) -> int:
        """Patches, all of them scored."""
        return self.grid[0] * self.grid[1]

    @property
    def rows(self) -> int:
        """Q."""
        return self.tokens + self.special

    @property
    def prefix(self) -> int:
        """Special rows among the features."""
        return self.special - self.cut

    @property
    def used_mask(self) -> str:
        """Masks that are weights fix the number of tokens; ONNX Runtime's operator wants a row per query."""
        if not self.fixed_tokens and self.mask != "image":
            return "none"
        return "pairs" if self.mask == "keys" and self.form != "softmax" else self.mask


@st.composite
def sketches(draw: st.DrawFn, *, half: bool = False) -> Sketch:
    """Any encoder that the exporters could have written; float16 one time in eight if `half`."""
    opset = draw(st.sampled_from([17, 18, 20, 23]))
    layers = draw(st.integers(1, 3))
    special = draw(st.sampled_from([0, 1, 1, 2, 5]))
    fixed_tokens = draw(st.booleans())
    rows = draw(st.integers(1, 5))
    columns = draw(st.integers(2, 8))
    return Sketch(
        layers=layers,
        heads=draw(st.integers(1, 4)),
        head_width=draw(st.sampled_from([4, 6, 8])),
        grid=(rows, columns),
        special=special,
        join=draw(st.sampled_from(["one", "two"])) if special > 1 else "one",
        feature_layer=draw(st.integers(0, layers - 1)),
        second=draw(st.booleans()),
        cut=draw(st.sampled_from([0, special])),
        scale=draw(st.sampled_from(["mul", "div", "q", "folded"])),
        mask=draw(st.sampled_from(["none", "none", "keys", "pairs", "heads", "image"])),
        form=draw(st.sampled_from(["softmax", "operator4", "operator3"])) if opset >= 23 else "softmax",
        packed=draw(st.sampled_from(["apart", "split", "gather"])),
        names=draw(st.sampled_from(["scopes", "names", "none"])),
        patches=draw(st.sampled_from(["matmul", "conv"])),
        positions=fixed_tokens and draw(st.booleans()),
        fixed_batch=draw(st.sampled_from([0, 0, 0, 1, 3])),
        fixed_tokens=fixed_tokens,
        norm=draw(st.sampled_from(["op", "plain"])),
        half=half and draw(st.integers(0, 7)) == 0,
        opset=opset,
        seed=draw(st.integers(0, 9999)),
    )


def weights(sketch: Sketch) -> Weights:
    """float32 weights by name; `wq.0` is layer 0's. Attention of them prefers something, but not one row."""
    random = np.random.default_rng(sketch.seed)
    width = sketch.width

    def matrix(rows: int, columns: int, size: float = 1.0) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * size / math.sqrt(rows)).astype(np.float32)

    made = {
        "embed": matrix(PIXELS, width),
        "special": random.standard_normal((sketch.special, width)).astype(np.float32),
        "positions": random.standard_normal((1, sketch.rows, width)).astype(np.float32),
    }
    for layer in range(sketch.layers):
        for name in ("wq", "wk", "wv", "wo"):
            made[f"{name}.{layer}"] = matrix(width, width, 1.3 if name in ("wq", "wk") else 1.0)
        made[f"up.{layer}"], made[f"down.{layer}"] = matrix(width, HIDDEN), matrix(HIDDEN, width)
        for norm in ("norm1", "norm2"):
            made[f"{norm}.{layer}"] = (1 + 0.1 * random.standard_normal(width)).astype(np.float32)
            made[f"{norm}_bias.{layer}"] = (0.1 * random.standard_normal(width)).astype(np.float32)
    sizes = {"keys": (1, 1, 1, sketch.rows), "pairs": (1, 1, sketch.rows, sketch.rows)}
    sizes["heads"] = (1, sketch.heads, sketch.rows, sketch.rows)
    if sketch.used_mask in sizes:
        made["mask"] = random.standard_normal(sizes[sketch.used_mask]).astype(np.float32)
    if sketch.half:
        made = {name: array.astype(np.float16).astype(np.float32) for name, array in made.items()}
    return made


def images(sketch: Sketch, count: int, grid: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
    """Feeds of the graph: patches of noise, in the layout that the sketch wants."""
    random = np.random.default_rng([sketch.seed, 1])
    rows, columns = grid or sketch.grid
    dtype = np.float16 if sketch.half else np.float32
    patches = random.standard_normal((count, rows * columns, PIXELS)).astype(dtype)
    feeds = {"pixels": patches}
    if sketch.patches == "conv":
        feeds["pixels"] = np.ascontiguousarray(
            patches.transpose(0, 2, 1).reshape(count, PIXELS, rows, columns)
        )
    if sketch.used_mask == "image":
        side = rows * columns + sketch.special
        feeds["mask"] = random.standard_normal((count, 1, side, side)).astype(dtype)
    return feeds


@dataclass
class _Writer:
    """Collects nodes and initializers; a node is named after the layer it belongs to, if names are wanted."""

    sketch: Sketch
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    layer: int | None = None

    @property
    def dtype(self) -> type:
        return np.float16 if self.sketch.half else np.float32

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        return self.ops(op_type, 1, *inputs, **attributes)[0]

    def ops(self, op_type: str, count: int, *inputs: str, **attributes: object) -> list[str]:
        number, named = len(self.nodes), self.sketch.names
        outputs = [f"val_{number}"] + [f"val_{number}_{at}" for at in range(1, count)]
        block = f"blocks.{self.layer}" if self.layer is not None else "stem"
        name = {"scopes": f"node_{number}", "names": f"/{block}/{op_type}_{number}", "none": ""}[named]
        node = helper.make_node(op_type, list(inputs), outputs, name=name, **attributes)  # type: ignore[arg-type]
        if named == "scopes":
            entry = node.metadata_props.add()
            entry.key, entry.value = SCOPES, f"['', '{block}', '{block}.attn', '{op_type.lower()}']"
        self.nodes.append(node)
        return outputs

    def weight(self, name: str, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array.astype(self.dtype)), name))
        return name

    def ints(self, *numbers: int) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name

    def number(self, number: float) -> str:
        return self.weight(f"c{len(self.constants)}", np.array(number, np.float32))


def build(sketch: Sketch, arrays: Weights | None = None) -> onnx.ModelProto:
    """The graph: pixels → image_features [images, prefix + tokens, width], and `pooled` if `second`."""
    arrays = weights(sketch) if arrays is None else arrays
    writer = _Writer(sketch)
    x = _embedded(writer, arrays)
    features = last = ""
    for layer in range(sketch.layers):
        writer.layer = layer
        x = last = _layer(writer, arrays, x)
        if layer == sketch.feature_layer:
            features = x
    writer.layer = None
    if sketch.cut:
        bounds = [writer.ints(sketch.cut), writer.ints(2**63 - 1), writer.ints(1), writer.ints(1)]
        features = writer.op("Slice", features, *bounds)
    features = writer.op("Identity", features)
    writer.nodes[-1].output[0] = "image_features"
    outputs = [_info(sketch, "image_features", _rows(sketch, sketch.prefix))]
    if sketch.second:
        last = writer.op("Relu", _mean(writer, last, 1, keep=0))
        writer.nodes[-1].output[0] = "pooled"
        outputs.append(_info(sketch, "pooled", [_images(sketch), sketch.width]))
    graph = helper.make_graph(writer.nodes, "encoder", _inputs(sketch), outputs, writer.constants)
    imports = [helper.make_opsetid("", sketch.opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _images(sketch: Sketch) -> int | str:
    return sketch.fixed_batch or "images"


def _rows(sketch: Sketch, special: int) -> list[int | str]:
    name = "patches" if not special and sketch.patches == "matmul" else f"rows_{special}"
    return [_images(sketch), sketch.tokens + special if sketch.fixed_tokens else name, sketch.width]


def _info(sketch: Sketch, name: str, sizes: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, TensorProto.FLOAT16 if sketch.half else TensorProto.FLOAT, sizes
    )


def _inputs(sketch: Sketch) -> list[onnx.ValueInfoProto]:
    batch: int | str = _images(sketch)
    rows: int | str = sketch.tokens if sketch.fixed_tokens else "patches"
    pixels: list[int | str] = [batch, rows, PIXELS]
    if sketch.patches == "conv":
        pixels = [batch, PIXELS, *(sketch.grid if sketch.fixed_tokens else ("high", "wide"))]
    found = [_info(sketch, "pixels", pixels)]
    if sketch.used_mask == "image":
        side = _rows(sketch, sketch.special)[1]
        found.append(_info(sketch, "mask", [batch, 1, side, side]))
    return found


def _embedded(writer: _Writer, arrays: Weights) -> str:
    sketch, embed = writer.sketch, arrays["embed"]
    if sketch.patches == "conv":
        kernel = writer.weight("embed", embed.T.reshape(sketch.width, PIXELS, 1, 1))
        maps = writer.op("Conv", "pixels", kernel, kernel_shape=[1, 1])
        rows = writer.op("Reshape", maps, writer.ints(0, sketch.width, -1))
        x = writer.op("Transpose", rows, perm=[0, 2, 1])
    else:
        x = writer.op("MatMul", "pixels", writer.weight("embed", embed))
    blocks = {"one": [sketch.special], "two": [1, sketch.special - 1]}[sketch.join] if sketch.special else []
    parts, start = [], 0
    for number, size in enumerate(blocks):
        block = writer.weight(f"special.{number}", arrays["special"][None, start : start + size])
        parts.append(writer.op("Expand", block, _expanded(writer, x, size)))
        start += size
    if parts:
        x = writer.op("Concat", *parts, x, axis=1)
    if sketch.positions:
        x = writer.op("Add", x, writer.weight("positions", arrays["positions"]))
    return x


def _expanded(writer: _Writer, x: str, size: int) -> str:
    """Shape [images, size, width]."""
    sketch = writer.sketch
    if sketch.fixed_batch:
        return writer.ints(sketch.fixed_batch, size, sketch.width)
    batch = writer.op("Gather", writer.op("Shape", x), writer.ints(0), axis=0)
    return writer.op("Concat", batch, writer.ints(size), writer.ints(sketch.width), axis=0)


def _mean(writer: _Writer, x: str, axis: int, keep: int) -> str:
    if writer.sketch.opset < 18:
        return writer.op("ReduceMean", x, axes=[axis], keepdims=keep)
    return writer.op("ReduceMean", x, writer.ints(axis), keepdims=keep)


def _norm(writer: _Writer, arrays: Weights, x: str, name: str) -> str:
    layer = writer.layer
    scale = writer.weight(f"{name}.{layer}", arrays[f"{name}.{layer}"])
    bias = writer.weight(f"{name}_bias.{layer}", arrays[f"{name}_bias.{layer}"])
    if writer.sketch.norm == "op":
        return writer.op("LayerNormalization", x, scale, bias, epsilon=EPSILON)
    centred = writer.op("Sub", x, _mean(writer, x, -1, keep=1))
    squared = writer.op("Mul", centred, centred)
    spread = writer.op("Add", _mean(writer, squared, -1, keep=1), writer.number(EPSILON))
    unit = writer.op("Div", centred, writer.op("Sqrt", spread))
    return writer.op("Add", writer.op("Mul", unit, scale), bias)


def _layer(writer: _Writer, arrays: Weights, x: str) -> str:
    layer = writer.layer
    u = _norm(writer, arrays, x, "norm1")
    merged = _attention(writer, arrays, u)
    y = writer.op("Add", x, writer.op("MatMul", merged, writer.weight(f"wo.{layer}", arrays[f"wo.{layer}"])))
    hidden = writer.op(
        "MatMul",
        _norm(writer, arrays, y, "norm2"),
        writer.weight(f"up.{layer}", arrays[f"up.{layer}"]),
    )
    gate = writer.op("Mul", hidden, writer.op("Sigmoid", hidden))
    return writer.op(
        "Add", y, writer.op("MatMul", gate, writer.weight(f"down.{layer}", arrays[f"down.{layer}"]))
    )


def _projected(writer: _Writer, arrays: Weights, u: str) -> list[str]:
    """Q, K and V as [images, rows, width] (`apart`, `split`), or [images, heads, rows, d] (`gather`)."""
    sketch, layer = writer.sketch, writer.layer
    each = [arrays[f"{name}.{layer}"] for name in ("wq", "wk", "wv")]
    if sketch.scale == "folded" and sketch.form == "softmax":
        each[0] = each[0] / math.sqrt(sketch.head_width)
    if sketch.packed == "apart":
        names = ("wq", "wk", "wv")
        return [
            writer.op("MatMul", u, writer.weight(f"{name}.{layer}", array))
            for name, array in zip(names, each, strict=True)
        ]
    every = writer.op("MatMul", u, writer.weight(f"wqkv.{layer}", np.concatenate(each, axis=1)))
    if sketch.packed == "split":
        sizes = writer.ints(*[sketch.width] * 3)
        return writer.ops("Split", 3, every, sizes, axis=2)
    heads = writer.op("Reshape", every, writer.ints(0, 0, 3, sketch.heads, sketch.head_width))
    stacked = writer.op("Transpose", heads, perm=[2, 0, 3, 1, 4])
    scalars = []
    for at in range(3):
        name = f"c{len(writer.constants)}"
        writer.constants.append(numpy_helper.from_array(np.array(at, np.int64), name))
        scalars.append(name)
    return [writer.op("Gather", stacked, scalar, axis=0) for scalar in scalars]


def _attention(writer: _Writer, arrays: Weights, u: str) -> str:
    sketch = writer.sketch
    parts = _projected(writer, arrays, u)
    mask = _mask(writer, arrays)
    with_heads = sketch.packed == "gather"
    if sketch.form == "operator3":
        if with_heads:
            parts = [_merged(writer, part) for part in parts]
        heads = {"q_num_heads": sketch.heads, "kv_num_heads": sketch.heads}
        return writer.op("Attention", *parts, *mask, **heads)
    if not with_heads:
        shape = writer.ints(0, 0, sketch.heads, sketch.head_width)
        parts = [
            writer.op("Transpose", writer.op("Reshape", part, shape), perm=[0, 2, 1, 3]) for part in parts
        ]
    if sketch.form == "operator4":
        return _merged(writer, writer.op("Attention", *parts, *mask))
    q, k, v = parts
    factor = 1 / math.sqrt(sketch.head_width)
    if sketch.scale == "q":
        q = writer.op("Mul", q, writer.number(factor))
    logits = writer.op("MatMul", q, writer.op("Transpose", k, perm=[0, 1, 3, 2]))
    if sketch.scale == "mul":
        logits = writer.op("Mul", logits, writer.number(factor))
    if sketch.scale == "div":
        logits = writer.op("Div", logits, writer.number(1 / factor))
    if mask:
        logits = writer.op("Add", logits, mask[0])
    return _merged(writer, writer.op("MatMul", writer.op("Softmax", logits, axis=-1), v))


def _mask(writer: _Writer, arrays: Weights) -> list[str]:
    kind = writer.sketch.used_mask
    if kind == "none":
        return []
    if kind != "image" and "mask" not in {constant.name for constant in writer.constants}:
        writer.weight("mask", arrays["mask"])
    return ["mask"]


def _merged(writer: _Writer, value: str) -> str:
    rows = writer.op("Transpose", value, perm=[0, 2, 1, 3])
    return writer.op("Reshape", rows, writer.ints(0, 0, writer.sketch.width))


class Truth:
    """The encoder of a sketch in float64, for one batch of feeds."""

    def __init__(self, sketch: Sketch, arrays: Weights, feeds: dict[str, np.ndarray]) -> None:
        self.sketch = sketch
        self._arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
        self._feeds = {name: array.astype(np.float64) for name, array in feeds.items()}

    @cached_property
    def _run(self) -> tuple[np.ndarray, list[np.ndarray]]:
        sketch, arrays = self.sketch, self._arrays
        pixels = self._feeds["pixels"]
        if sketch.patches == "conv":
            pixels = pixels.reshape(*pixels.shape[:2], -1).transpose(0, 2, 1)
        x = pixels @ arrays["embed"]
        x = np.concatenate([np.broadcast_to(arrays["special"], (len(x), *arrays["special"].shape)), x], 1)
        x = x + arrays["positions"] if sketch.positions else x
        attentions, features = [], x
        for layer in range(sketch.layers):
            u = self._normed(x, "norm1", layer)
            q, k, v = (self._heads(u @ arrays[f"{name}.{layer}"]) for name in ("wq", "wk", "wv"))
            logits = q @ k.transpose(0, 1, 3, 2) / math.sqrt(sketch.head_width)
            if sketch.used_mask != "none":
                logits = logits + (self._feeds if sketch.used_mask == "image" else arrays)["mask"]
            exponents = np.exp(logits - logits.max(axis=3, keepdims=True))
            attentions.append(exponents / exponents.sum(axis=3, keepdims=True))
            merged = (attentions[-1] @ v).transpose(0, 2, 1, 3).reshape(x.shape)
            x = x + merged @ arrays[f"wo.{layer}"]
            hidden = self._normed(x, "norm2", layer) @ arrays[f"up.{layer}"]
            x = x + hidden / (1 + np.exp(-hidden)) @ arrays[f"down.{layer}"]
            if layer == sketch.feature_layer:
                features = x[:, sketch.cut :]
        return features, attentions

    @property
    def features(self) -> np.ndarray:
        """[images, prefix + tokens, width]."""
        return self._run[0]

    def scores(self, aggregation: str, layer: int) -> np.ndarray:
        """[images, tokens], by the formulas of the FoPru specification, section 3."""
        attention, special = self._run[1][layer], self.sketch.special
        averaged = {
            "col_mean": attention,
            "col_mean_patch": attention[:, :, special:],
            "cls": attention[:, :, :1],
        }
        return np.asarray(averaged[aggregation].mean(axis=(1, 2))[:, special:])

    def _normed(self, x: np.ndarray, name: str, layer: int) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        return np.asarray(unit * self._arrays[f"{name}.{layer}"] + self._arrays[f"{name}_bias.{layer}"])

    def _heads(self, value: np.ndarray) -> np.ndarray:
        sizes = (*value.shape[:2], self.sketch.heads, self.sketch.head_width)
        return value.reshape(sizes).transpose(0, 2, 1, 3)
