"""Tiny encoders that merge patches, exported by torch, and a plain PyTorch FoPru to compare with.

`Shuffled` works as pixel shuffle does (SmolVLM, InternVL), `Packed` as Qwen2.5-VL: windows, rotary positions,
an order of its own. Channel 0 of the patches is heat: a hot patch draws all attention. Nothing here knows
`fopru_graph`.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Packed", "Shuffled", "Toy", "export", "feeds", "group", "host_inputs", "model", "reference"]

CHANNELS, WIDTH, HEADS, OUT, WINDOW = 6, 16, 2, 10, 2
HEAD = WIDTH // HEADS
_FOLDER = tempfile.TemporaryDirectory(prefix="toy_mergers_")


@dataclass(frozen=True)
class Toy:
    """One encoder; grid is that of the merged tokens, rows before columns.

    Attributes:
        order: `row_major` or `packed`.
        blocks: "f" for an attention over all patches, "w" for one over windows of 2 x 2 tokens.
        dynamic: whether the number of patches (packed) or images (row_major) varies.
    """

    order: str
    merge: int = 2
    grid: tuple[int, int] = (2, 3)
    cls: bool = False
    blocks: str = "ff"
    attention: str = "sdpa"
    opset: int = 20
    dynamic: bool = True

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def patches(self) -> int:
        return self.tokens * self.merge**2


class Block(torch.nn.Module):
    """Attention and MLP over [images, rows, WIDTH], or over windows of the rows of one image."""

    def __init__(self, kind: str, attention: str) -> None:
        super().__init__()
        self.kind, self.attention = kind, attention
        self.norm_1, self.norm_2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.qkv, self.out = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, 24), torch.nn.Linear(24, WIDTH)
        self.seen: list[torch.Tensor] | None = None  # probabilities, where somebody wants them

    def forward(self, x: torch.Tensor, turns: Any, windows: Any) -> torch.Tensor:
        images, rows, _ = x.shape
        q, k, v = self.qkv(self.norm_1(x)).reshape(images, rows, 3, HEADS, HEAD).permute(2, 0, 1, 3, 4)
        if turns is not None:
            q, k = rotated(q, *turns), rotated(k, *turns)
        if self.kind == "w":
            index, mask, back = windows
            q, k, v = (part[0][index].transpose(1, 2) for part in (q, k, v))
            mixed = self.attend(q, k, v, mask).transpose(1, 2).flatten(0, 1)[back].unsqueeze(0)
        else:
            mixed = self.attend(*(part.transpose(1, 2) for part in (q, k, v)), None).transpose(1, 2)
        x = x + self.out(mixed.reshape(images, rows, WIDTH))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm_2(x))))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any) -> torch.Tensor:
        if self.attention == "sdpa" and self.seen is None:
            return scaled_dot_product_attention(q, k, v, attn_mask=mask)
        logits = q @ k.transpose(2, 3) * HEAD**-0.5
        if mask is not None:
            logits = torch.where(mask, logits, torch.finfo(torch.float32).min)
        probabilities = torch.softmax(logits, dim=-1)
        if self.seen is not None:
            self.seen.append(probabilities)
        return probabilities @ v


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [1, rows, heads, d] turned by angles [rows, d]."""
    left, right = x.chunk(2, dim=-1)
    turned = torch.cat([-right, left], dim=-1)
    return x * cos[None, :, None] + turned * sin[None, :, None]


class Shuffled(torch.nn.Module):
    """patches [B, P, CHANNELS] in reading order → image_features [B, P / s^2, OUT]."""

    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.toy = toy
        self.embed = torch.nn.Linear(CHANNELS, WIDTH)
        self.cls = torch.nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.layers = torch.nn.ModuleList(Block(kind, toy.attention) for kind in toy.blocks)
        self.project = torch.nn.Linear(WIDTH * toy.merge**2, OUT)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        x = self.embed(patches)
        if self.toy.cls:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x, None, None)
        s, (rows, columns) = self.toy.merge, self.toy.grid
        x = x[:, 1:] if self.toy.cls else x
        x = x.reshape(-1, rows, s, columns, s, WIDTH).permute(0, 1, 3, 2, 4, 5)
        return self.project(x.reshape(-1, rows * columns, s * s * WIDTH))


class Packed(torch.nn.Module):
    """patches [P, CHANNELS], s^2 of a token together → image_features [1, P / s^2, OUT].

    Tokens come in, and go out, in reading order. In between it is that of `to_windows` [N]; `windows` [W, M]
    are rows in that order, and `back` [P] undoes them.
    """

    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.toy = toy
        self.embed = torch.nn.Linear(CHANNELS, WIDTH)
        self.layers = torch.nn.ModuleList(Block(kind, toy.attention) for kind in toy.blocks)
        self.project = torch.nn.Linear(WIDTH * toy.merge**2, OUT)

    def forward(
        self,
        patches: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        to_windows: torch.Tensor,
        reverse: torch.Tensor,
        windows: torch.Tensor,
        window_mask: torch.Tensor,
        back: torch.Tensor,
    ) -> torch.Tensor:
        group = self.toy.merge**2
        x, cos, sin = (
            each.reshape(-1, group, each.shape[-1])[to_windows].flatten(0, 1)
            for each in (self.embed(patches), cos, sin)
        )
        x = x.unsqueeze(0)
        for layer in self.layers:
            x = layer(x, (cos, sin), (windows, window_mask, back))
        merged = self.project(x.reshape(-1, group * WIDTH))
        return merged[reverse].unsqueeze(0)


@functools.cache
def model(toy: Toy) -> torch.nn.Module:
    """Weights large enough for attention to prefer something, heat before all."""
    torch.manual_seed(1)
    made = (Packed if toy.order == "packed" else Shuffled)(toy).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4 if "qkv" in name else 0.2)
            elif "bias" in name:
                parameter.normal_(std=0.1)
        made.embed.weight[:, 0] = 0  # heat goes into channel 0, and nothing else does
        made.embed.weight[0] = torch.eye(CHANNELS)[0]
        for layer in made.layers:
            # the first number of a head's key is heat, and that of every query asks for it; rotary leaves
            # it alone, as its angles are 0
            for head in range(HEADS):
                layer.qkv.weight[head * HEAD] = 0
                layer.qkv.bias[head * HEAD] = 2
                layer.qkv.weight[WIDTH + head * HEAD] = 3 * torch.eye(WIDTH)[0]
    return made


def host_inputs(toy: Toy, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """What the host of a packed encoder makes of a grid of tokens: orders, windows of 2 x 2 tokens."""
    s, (rows, columns) = toy.merge, grid
    tokens = [(y, x) for y in range(rows) for x in range(columns)]
    ordered = sorted(range(len(tokens)), key=lambda t: (tokens[t][0] // WINDOW, tokens[t][1] // WINDOW, t))
    by_window: dict[tuple[int, int], list[int]] = {}
    for place, token in enumerate(ordered):
        y, x = tokens[token]
        by_window.setdefault((y // WINDOW, x // WINDOW), []).extend(range(place * s * s, (place + 1) * s * s))
    most = (WINDOW * s) ** 2
    windows = np.zeros((len(by_window), most), np.int64)
    mask = np.zeros((len(by_window), 1, most, most), bool)  # ONNX Runtime wants every query's row
    back = np.zeros(len(tokens) * s * s, np.int64)
    for number, members in enumerate(by_window.values()):
        windows[number, : len(members)] = members
        mask[number, ..., : len(members)] = True
        back[members] = number * most + np.arange(len(members))
    angles = np.random.default_rng(5).uniform(0, 1, (len(back), HEAD // 2)).astype(np.float32)
    angles[:, 0] = 0
    angles = np.concatenate([angles, angles], axis=1)
    return {
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "to_windows": np.array(ordered, np.int64),
        "reverse": np.argsort(ordered).astype(np.int64),
        "windows": windows,
        "window_mask": mask,
        "back": back,
    }


def feeds(
    toy: Toy, grid: tuple[int, int] | None = None, *, images: int = 2, hot: int = -1
) -> dict[str, np.ndarray]:
    """Inputs of noise, or of nothing but one hot patch: number `hot` in the order of the input."""
    grid = grid or toy.grid
    count = grid[0] * grid[1] * toy.merge**2
    shape = (count, CHANNELS) if toy.order == "packed" else (images, count, CHANNELS)
    patches = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    if hot >= 0:
        patches = np.zeros(shape, np.float32)
        patches[..., hot, 0] = 50
    return {"patches": patches, **(host_inputs(toy, grid) if toy.order == "packed" else {})}


@functools.cache
def export(toy: Toy) -> Path:
    """ONNX file of a toy."""
    given = {name: torch.from_numpy(array) for name, array in feeds(toy).items()}
    dynamic: dict[str, Any] = dict.fromkeys(given)
    if toy.dynamic and toy.order == "packed":
        # Named dims of which one is a multiple of another get wrong names in the ONNX file (torch 2.13).
        dynamic = {name: {0: torch.export.Dim.DYNAMIC} for name in given}
    elif toy.dynamic:
        dynamic = {"patches": {0: torch.export.Dim("images", min=1, max=64)}}
    with warnings.catch_warnings():
        # torch 2.13 pickles pytree specs of its own deprecated class while exporting.
        warnings.filterwarnings(
            "ignore", message=r".*isinstance\(treespec, LeafSpec\).*", category=FutureWarning
        )
        program = torch.onnx.export(
            model(toy),
            kwargs=given,
            dynamo=True,
            opset_version=toy.opset,
            input_names=list(given),
            output_names=["image_features"],
            dynamic_shapes=dynamic,
            verbose=False,
        )
    assert program is not None
    path = Path(_FOLDER.name) / f"{len(list(Path(_FOLDER.name).iterdir()))}.onnx"
    program.save(str(path))
    return path


def group(toy: Toy, patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Means over the patches of each token, in reading order: [..., P] as the input has them → [..., N]."""
    s, (rows, columns) = toy.merge, grid
    merged = np.zeros((*patches.shape[:-1], rows * columns))
    for y in range(rows):
        for x in range(columns):
            token = y * columns + x
            members = (
                [token * s * s + at for at in range(s * s)]
                if toy.order == "packed"
                else [(s * y + a) * columns * s + s * x + b for a in range(s) for b in range(s)]
            )
            merged[..., token] = patches[..., members].mean(axis=-1)
    return merged


def reference(
    toy: Toy,
    given: dict[str, np.ndarray],
    grid: tuple[int, int] | None = None,
    *,
    aggregation: str = "col_mean",
    layer: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch: scores [B, N] in float64 by one block, and unpruned features [B, N, OUT]."""
    net = model(toy)
    scoring = net.layers[layer]
    scoring.seen = []
    with torch.no_grad():
        features = net(**{name: torch.from_numpy(array) for name, array in given.items()})
    attention = scoring.seen[0].double().numpy()
    scoring.seen = None
    special = int(toy.cls)
    start, end = {"col_mean": (0, None), "col_mean_patch": (special, None), "cls": (0, 1)}[aggregation]
    received = attention[:, :, start:end].mean(axis=(1, 2))[:, special:]
    if toy.order == "packed":  # from the order of the windows to that of the input
        s2 = toy.merge**2
        received = received.reshape(1, -1, s2)[:, given["reverse"]].reshape(1, -1)
    return group(toy, received, grid or toy.grid), features.numpy()
