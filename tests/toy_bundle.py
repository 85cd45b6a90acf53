"""A handwritten bundle of a few kilobytes whose every number a page of numpy can predict.

The vision encoder multiplies patches by a matrix, scores them by their energy and keeps the best by TopK; the
decoder keeps a real cache (concat of past and new); its logits are a known function of all that was ever fed,
written out in `ToyModel`.
`python -m tests.toy_bundle DIRECTORY` writes one, `--tiles` one that cuts images into tiles; those in
tests/data were made so, each by its own version of this file, and are frozen.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from runtime import contract
from runtime.bundle import sha256_of
from runtime.contract import TensorSpec
from runtime.layouts.anyres import AnyresLayout
from runtime.layouts.base import ImageLayout, ImagePlan
from runtime.layouts.single import SingleLayout
from runtime.manifest import (
    FORMAT_VERSION,
    GRAPHS,
    IMAGE_NEWLINE,
    ConstantInfo,
    DecoderInfo,
    FileInfo,
    GraphInfo,
    Manifest,
    ModelInfo,
    Preprocess,
    PromptTemplate,
    PruningInfo,
    SpecialTokens,
)

PAD, BOS, EOS, IMAGE = 0, 1, 2, 3
PATCH, WIDTH, HEADS, HEAD_DIM, LAYERS = 4, 8, 2, 4, 2
ONNX_TYPE = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
TOY_GRAPHS = (*GRAPHS, contract.DECODER)  # its cache is of kind "concat", as in formats 1 and 2
NEWLINE_FILE = "constants/image_newline.bin"
AXIS_WEIGHTS = (1, 2, 4)  # how much each row of the position ids counts in the decoder
TILES = ((32, 32), (16, 32), (32, 16))  # canvases of the toy with tiles


@dataclass(frozen=True)
class AxesLayout(SingleLayout):
    """One picture per image, whose tokens have three positions: (time, row, column). Not of the product: to
    load a bundle with it, put it into `runtime.layouts.LAYOUTS`."""

    kind: ClassVar[str] = "toy_axes"
    position_axes: ClassVar[int] = 3

    def plan(self, height: int, width: int) -> ImagePlan:
        assert self.grid is not None
        places = np.indices(self.grid).reshape(2, -1)
        offsets = np.concatenate([np.zeros_like(places[:1]), places]).astype(np.int64)
        return replace(super().plan(height, width), offsets=offsets, spans=(max(self.grid),))


@dataclass(frozen=True)
class ToyModel:
    """Weights and the numpy form of the whole model.

    `prefix` adds a CLS-like row of patch means; `pinpoints` cuts images into tiles, with padding and
    newlines; `axes` is the number of rows of the decoder's position ids.
    """

    grid: tuple[int, int] = (4, 4)
    prefix: int = 0
    strategy: str = "rank"
    vocab: int = 260
    seed: int = 0
    pinpoints: tuple[tuple[int, int], ...] = ()
    axes: int = 1
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shapes = {"patch": (3 * PATCH * PATCH, WIDTH), "embed": (self.vocab, WIDTH)}
        for name, shape in shapes.items():
            # Eighths keep every sum exact in float32, so numpy and onnxruntime agree bit for bit.
            self.weights[name] = (rng.integers(-8, 9, shape) / 8).astype(np.float32)
        self.weights["patch"] /= 16
        # The head likes the successor of the last token under a fixed permutation; special tokens never win.
        successors = np.concatenate([np.zeros(4, np.int64), 4 + rng.permutation(self.vocab - 4)])
        self.weights["head"] = self.weights["embed"][successors].T.copy()
        self.weights["head"][:, :4] = 0
        self.weights["newline"] = (np.arange(WIDTH) / 8 - 0.5).astype(np.float32)

    @property
    def layout(self) -> ImageLayout:
        if self.pinpoints:
            return AnyresLayout(self.size, self.grid, self.pinpoints)
        single = SingleLayout if self.axes == 1 else AxesLayout
        size = {"height": self.size[0], "width": self.size[1]}
        return single(self.grid, self.tokens, size, None, None, self.prefix)

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def size(self) -> tuple[int, int]:
        return self.grid[0] * PATCH, self.grid[1] * PATCH

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """[images, p + N, D] of [images, 3, H, W]."""
        rows, columns = self.grid
        patches = pixels.reshape(-1, 3, rows, PATCH, columns, PATCH).transpose(0, 2, 4, 1, 3, 5)
        tokens = patches.reshape(-1, self.tokens, 3 * PATCH * PATCH) @ self.weights["patch"]
        first = tokens.mean(axis=1, keepdims=True, dtype=np.float32)
        return np.concatenate([first] * self.prefix + [tokens], axis=1)

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """[images, N]: squared length of each token."""
        return np.square(self.features(pixels)[:, self.prefix :]).sum(axis=2)

    def kept(self, pixels: np.ndarray, keep: int, mask: np.ndarray | None = None) -> np.ndarray:
        """[images, K] of the tokens that `mask` [images, N] does not leave out; K in whole rows for "row"."""
        scores = self.scores(pixels)
        mask = np.ones(scores.shape, np.bool_) if mask is None else mask
        if self.strategy == "rank":
            scores = np.where(mask, scores, -1)
            return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :keep], axis=1)
        sums = np.where(mask, scores, 0).reshape(-1, *self.grid).sum(axis=2)
        filled = mask.reshape(-1, *self.grid).sum(axis=2)
        means = np.where(filled > 0, sums / np.maximum(filled, 1), -1)
        rows = np.sort(np.argsort(-means, axis=1, kind="stable")[:, : keep // self.grid[1]], axis=1)
        return (rows[..., None] * self.grid[1] + np.arange(self.grid[1])).reshape(len(rows), -1)

    def pruned(self, pixels: np.ndarray, keep: int) -> np.ndarray:
        """[images, p + K, D]."""
        whole, kept = self.features(pixels), self.kept(pixels, keep)
        picked = np.take_along_axis(whole, kept[..., None] + self.prefix, axis=1)
        return np.concatenate([whole[:, : self.prefix], picked], axis=1)

    def merged(self, ids: np.ndarray, features: np.ndarray) -> np.ndarray:
        """[1, L, D]: embeddings with visual tokens at the placeholders."""
        embeds = self.weights["embed"][ids]
        embeds[ids == IMAGE] = features.reshape(-1, WIDTH)
        return embeds

    def logits(self, embeds: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """[V] after [1, L, D]: mean over both caches plus last row, weighted by position, times head.

        `positions` [axes, L]; without, 0, 1, 2, ... on every axis.
        """
        if positions is None:
            positions = np.tile(np.arange(embeds.shape[1]), (self.axes, 1))
        places = (np.array(AXIS_WEIGHTS[: self.axes]) @ positions).astype(np.float32) / 8
        value = embeds[0] * (1 + places)[:, None]
        total = (value.sum(axis=0) * LAYERS) / np.float32(embeds.shape[1])
        return (total + value[-1]) @ self.weights["head"]

    def greedy(
        self, embeds: np.ndarray, steps: int, positions: np.ndarray | None = None, after: int = 0
    ) -> list[int]:
        """Greedy token ids, the end token ignored; beside `positions`, the first token is at `after`."""
        tokens: list[int] = []
        for step in range(steps):
            tokens.append(int(np.argmax(self.logits(embeds, positions))))
            embeds = np.concatenate([embeds, self.weights["embed"][[[tokens[-1]]]]], axis=1)
            if positions is not None:
                positions = np.concatenate([positions, np.full((self.axes, 1), after + step)], axis=1)
        return tokens


class _Graph:
    """Twenty lines of builder: nodes in order, weights as external-free initializers."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, output.split(), **attributes))
        return output.split()[0]

    def const(self, name: str, value: object, dtype: type = np.int64) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def save(self, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        infos = [
            [helper.make_tensor_value_info(t.name, ONNX_TYPE[t.dtype], t.shape) for t in tensors]
            for tensors in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, path.stem, *infos, initializer=self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)


def _vision(model: ToyModel, pruned: bool) -> _Graph:
    g = _Graph()
    rows, columns = model.grid
    six = g.const("six", [-1, 3, rows, PATCH, columns, PATCH])
    g.add("Reshape", ["pixel_values", six], "blocks")
    g.add("Transpose", ["blocks"], "patches", perm=[0, 2, 4, 1, 3, 5])
    g.add("Reshape", ["patches", g.const("three", [-1, model.tokens, 3 * PATCH * PATCH])], "flat")
    g.add("MatMul", ["flat", g.const("patch", model.weights["patch"], np.float32)], "tokens")
    g.add("ReduceMean", ["tokens", g.const("axis1", [1])], "first")
    chosen = "tokens"
    if pruned:
        chosen = "picked"
        g.add("Mul", ["tokens", "tokens"], "squared")
        g.add("ReduceSum", ["squared", g.const("axis2", [2])], "token_scores", keepdims=0)
        (_keep_rows if model.strategy == "row" else _keep_tokens)(g, model)
        g.add("Unsqueeze", ["kept_indices", g.const("last", [-1])], "places")
        g.add("GatherND", ["tokens", "places"], "picked", batch_dims=1)
    g.add("Concat", ["first"] * model.prefix + [chosen], "image_features", axis=1)
    return g


def _keep_tokens(g: _Graph, model: ToyModel) -> None:
    scores = "token_scores"
    if model.layout.masked:
        scores = g.add("Where", ["token_mask", scores, g.const("never", -1.0, np.float32)], "shown_scores")
    g.add("TopK", [scores, "num_keep"], "top_values top_places", axis=1)
    g.add("TopK", ["top_places", "num_keep"], "kept_indices more", axis=1, largest=0)


def _keep_rows(g: _Graph, model: ToyModel) -> None:
    rows, columns = model.grid
    as_grid = g.const("as_grid", [-1, rows, columns])
    g.add("Reshape", ["token_scores", as_grid], "score_grid")
    if model.layout.masked:
        g.add("Cast", ["token_mask"], "shown", to=TensorProto.FLOAT)
        g.add("Reshape", ["shown", as_grid], "shown_grid")
        g.add("Mul", ["score_grid", "shown_grid"], "shown_scores")
        g.add("ReduceSum", ["shown_scores", "axis2"], "sums", keepdims=0)
        g.add("ReduceSum", ["shown_grid", "axis2"], "lengths", keepdims=0)
        g.add("Max", ["lengths", g.const("one", 1.0, np.float32)], "at_least_one")
        g.add("Div", ["sums", "at_least_one"], "means")
        g.add("Min", ["lengths", "one"], "filled")
        g.add("Sub", ["filled", "one"], "minus_empty")
        g.add("Add", ["means", "minus_empty"], "row_means")
    else:
        g.add("ReduceMean", ["score_grid", "axis2"], "row_means", keepdims=0)
    g.add("Div", ["num_keep", g.const("columns", [columns])], "num_rows")
    g.add("TopK", ["row_means", "num_rows"], "best_values best_rows", axis=1)
    g.add("TopK", ["best_rows", "num_rows"], "kept_rows more", axis=1, largest=0)
    g.add("Mul", ["kept_rows", "columns"], "starts")
    g.add("Unsqueeze", ["starts", g.const("end", [-1])], "column_starts")
    g.add("Add", ["column_starts", g.const("across", np.arange(columns))], "in_rows")
    g.add("Reshape", ["in_rows", g.const("flat_shape", [0, -1])], "kept_indices")


def _embed(model: ToyModel) -> _Graph:
    g = _Graph()
    g.add("Gather", [g.const("embed", model.weights["embed"], np.float32), "input_ids"], "inputs_embeds")
    return g


def _decoder(model: ToyModel) -> _Graph:
    g = _Graph()
    positions = "position_ids"
    if model.axes > 1:
        weights = g.const("axis_weights", np.array(AXIS_WEIGHTS).reshape(-1, 1, 1))
        g.add("Mul", [positions, weights], "weighted_positions")
        positions = g.add("ReduceSum", ["weighted_positions", g.const("first_axis", [0])], "sum", keepdims=0)
    g.add("Cast", [positions], "places", to=TensorProto.FLOAT)
    g.add("Mul", ["places", g.const("eighth", 0.125, np.float32)], "eighths")
    g.add("Add", ["eighths", g.const("one", 1.0, np.float32)], "weights")
    g.add("Unsqueeze", ["weights", g.const("last", [-1])], "columns")
    g.add("Mul", ["inputs_embeds", "columns"], "weighted")
    g.add("Reshape", ["weighted", g.const("split", [0, 0, HEADS, HEAD_DIM])], "heads")
    g.add("Transpose", ["heads"], "new", perm=[0, 2, 1, 3])
    g.add("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
    g.add("Unsqueeze", ["mask", g.const("mask_axes", [1, 3])], "mask4")
    for layer in range(LAYERS):
        for part in ("key", "value"):
            past, present = contract.past_name(layer, part), contract.present_name(layer, part)
            g.add("Concat", [past, "new"], present, axis=2)
        g.add("Mul", [contract.present_name(layer, "value"), "mask4"], f"seen{layer}")
    g.add("Sum", [f"seen{layer}" for layer in range(LAYERS)], "all")
    g.add("CumSum", ["all", g.const("along", 2)], "running")
    g.add("Transpose", ["running"], "by_token", perm=[0, 2, 1, 3])
    g.add("Reshape", ["by_token", g.const("joined", [0, 0, WIDTH])], "sums")
    g.add("CumSum", ["mask", g.const("along1", 1)], "lengths")
    g.add("Unsqueeze", ["lengths", "last"], "length_column")
    g.add("Div", ["sums", "length_column"], "means")
    g.add("Neg", ["num_logits_to_keep"], "minus")
    g.add("Unsqueeze", ["minus", g.const("axis0", [0])], "start")
    g.add("Slice", ["means", "start", g.const("far", [2**31]), g.const("seq_axis", [1])], "wanted")
    g.add("Slice", ["weighted", "start", "far", "seq_axis"], "last_rows")
    g.add("Add", ["wanted", "last_rows"], "hidden")
    g.add("MatMul", ["hidden", g.const("head", model.weights["head"], np.float32)], "logits")
    return g


def write_tokenizer(path: Path) -> None:
    """One token per byte after the four special ones, so that any text can be written and cut anywhere."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<s>", "</s>", "<image>"]
    vocab = {text: place for place, text in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in specials])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.save(str(path), pretty=False)


def toy_manifest(model: ToyModel, files: dict[str, FileInfo]) -> Manifest:
    """The manifest of a toy; tables of the graphs come from the contract, as an exporter's would."""
    layout = model.layout
    decoder = DecoderInfo(LAYERS, HEADS, HEAD_DIM, WIDTH, model.vocab, 256, model.axes)
    positions = "renumber" if model.axes == 1 else "original"
    contracts = {
        **contract.vision_contracts(layout, WIDTH),
        contract.EMBED_TOKENS: contract.embed_contract(WIDTH),
        contract.DECODER: contract.decoder_contract(decoder, contract.CONCAT),
    }
    graphs = {
        name: GraphInfo(contract.graph_file(name), contracts[name].inputs, contracts[name].outputs)
        for name in TOY_GRAPHS
    }
    return Manifest(
        format_version=FORMAT_VERSION,
        created_by={"fopru-edge": "0.1.0", "opset": 20, "command": "python -m tests.toy_bundle"},
        model=ModelInfo("toy", "tests/toy_bundle.py", "toy", "ToyModel"),
        prompt=PromptTemplate("Q: {images}{prompt} A:", "\nQ: {images}{prompt} A:", "<image>\n", True),
        tokens=SpecialTokens(IMAGE, (EOS,), PAD, BOS),
        # Powers of two, for sums that are exact in float32.
        preprocess=Preprocess(3, 0.0078125, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        layout=layout,
        pruning=PruningInfo(model.strategy, "col_mean", 0, "one_pass", "late", positions, 0.5, None),
        decoder=decoder,
        graphs=graphs,
        files=files,
        constants={IMAGE_NEWLINE: ConstantInfo(NEWLINE_FILE, (WIDTH,))} if model.pinpoints else {},
        parity=None,
    )


def write_toy_bundle(
    root: Path, model: ToyModel | None = None, edit: Callable[[Manifest], Manifest] | None = None
) -> Path:
    """Write a bundle; `edit` changes the manifest before it is written, hashes are of the real files."""
    model = ToyModel() if model is None else model
    (root / "onnx").mkdir(parents=True)
    tables = toy_manifest(model, toy_files())
    builders = {
        contract.VISION_ENCODER: lambda: _vision(model, pruned=False),
        contract.VISION_ENCODER_FOPRU: lambda: _vision(model, pruned=True),
        contract.EMBED_TOKENS: lambda: _embed(model),
        contract.DECODER: lambda: _decoder(model),
    }
    for name, build in builders.items():
        info = tables.graphs[name]
        build().save(root / info.file, info.inputs, info.outputs)
    write_tokenizer(root / "tokenizer.json")
    if model.pinpoints:
        (root / NEWLINE_FILE).parent.mkdir()
        model.weights["newline"].astype("<f4").tofile(root / NEWLINE_FILE)
    if model.axes == 1:
        _write_golden(root, model)
    manifest = toy_manifest(model, _hashes(root))
    manifest = manifest if edit is None else edit(manifest)
    (root / "bundle.json").write_text(manifest.to_json(), encoding="utf-8")
    return root


def toy_files() -> dict[str, FileInfo]:
    """Entries that stand for the files of a manifest that is never written."""
    return {name: FileInfo(1, "") for name in (*map(contract.graph_file, TOY_GRAPHS), NEWLINE_FILE)}


def rehash(root: Path) -> None:
    """Bring sizes and hashes of `bundle.json` up to date after a test has changed a file on purpose."""
    manifest = Manifest.from_json((root / "bundle.json").read_text(encoding="utf-8"))
    (root / "bundle.json").write_text(replace(manifest, files=_hashes(root)).to_json(), encoding="utf-8")


def _hashes(root: Path) -> dict[str, FileInfo]:
    names = sorted(
        p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.name != "bundle.json"
    )
    return {name: FileInfo((root / name).stat().st_size, sha256_of(root / name)) for name in names}


def toy_photo(size: tuple[int, int], seed: int = 7) -> np.ndarray:
    """uint8 [H, W, 3] noise."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write_photos(folder: Path, count: int = 4) -> Path:
    """A folder of small pictures, `0.png` and so on."""
    folder.mkdir()
    for place in range(count):
        Image.fromarray(toy_photo((24, 20 + place), seed=place)).save(folder / f"{place}.png")
    return folder


def _write_golden(root: Path, model: ToyModel) -> None:
    """Golden tensors by numpy alone: the independent reference of the toy."""
    from PIL import Image

    prompt, steps = "what?", 32
    photo = toy_photo(model.pinpoints[0] if model.pinpoints else model.size)
    golden = root / "golden"
    golden.mkdir()
    Image.fromarray(photo).save(golden / "image_0.png")
    pixels = np.stack([view.transpose(2, 0, 1) for view in _cut(model, photo)]).astype(np.float32) / 128
    rows, columns = model.grid
    keep = columns * ((rows + 1) // 2) if model.strategy == "row" else (model.tokens + 1) // 2
    kept = model.kept(pixels, keep)
    pruned, whole = model.pruned(pixels, keep).reshape(-1, WIDTH), model.features(pixels).reshape(-1, WIDTH)
    if model.pinpoints:
        everything = np.tile(np.arange(model.tokens), (len(pixels), 1))
        whole, pruned = packed(model, pixels, everything), packed(model, pixels, kept)
    ids = np.array([[BOS, *byte_ids("Q: "), *[IMAGE] * len(pruned), *byte_ids("\nwhat? A:")]], np.int64)
    embeds = model.merged(ids, pruned)
    tensors = {
        "pixel_values": pixels.reshape(-1, pixels.shape[-1]),
        "kept_counts": np.full(len(pixels), keep, np.int64),
        "image_features": whole,
        "token_scores": model.scores(pixels).reshape(-1),
        "kept_indices": kept.reshape(-1),
        "pruned_features": pruned,
        "input_ids": ids,
        "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
        "inputs_embeds": embeds,
        "logits": model.logits(embeds)[None],
        "tokens": np.array([model.greedy(embeds, steps)], np.int64),
    }
    np.savez_compressed(golden / "golden.npz", **tensors)
    record = {
        "prompt": prompt,
        "images": ["golden/image_0.png"],
        "ratio": 0.5,
        "tokens": None,
        "strategy": model.strategy,
        "new_tokens": steps,
        "reference": "numpy",
    }
    (golden / "golden.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _cut(model: ToyModel, photo: np.ndarray) -> list[np.ndarray]:
    """The views of a photo that is as large as the encoder's picture, or as a whole canvas of tiles."""
    from PIL import Image

    height, width = model.size
    if not model.pinpoints:
        return [photo]
    small = Image.fromarray(photo).resize((width, height), resample=Image.Resampling.BICUBIC)
    bands = np.split(photo, photo.shape[0] // height)
    tiles = [tile for band in bands for tile in np.split(band, photo.shape[1] // width, axis=1)]
    return [np.asarray(small), *tiles]


def packed(model: ToyModel, pixels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Rows [*, D] of an image on a canvas of 2 x 2 tiles without padding, of which `kept` [5, K] stay.

    First the overview's, then the canvas line by line across tiles, each ended by the newline vector.
    """
    rows, columns = model.grid
    features = model.features(pixels)
    lines = [features[0, kept[0]]]
    for y in range(2 * rows):
        for tile in (1 + y // rows * 2, 2 + y // rows * 2):
            own = kept[tile][kept[tile] // columns == y % rows]
            lines.append(features[tile, own])
        lines.append(model.weights["newline"][None])
    return np.concatenate(lines)


def byte_ids(text: str) -> list[int]:
    """Token ids of a text under the toy tokenizer, without its library."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    shown = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [alphabet.index(char) + 4 for piece, _ in shown for char in piece]


if __name__ == "__main__":
    write_toy_bundle(Path(sys.argv[1]), ToyModel(pinpoints=TILES) if "--tiles" in sys.argv else None)
