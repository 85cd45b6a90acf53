"""Tiny random-weight vision encoders, exported as a user would, and a plain PyTorch FoPru to compare with.

Nothing here knows `fopru_graph`. An export takes a second or two, so each configuration is exported once per
process.
"""

from __future__ import annotations

import copy
import functools
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

__all__ = ["Reference", "Toy", "export", "pixels", "reference", "select_rank", "select_rows", "text_encoder"]

WIDTH, HEADS, LAYERS, PATCH, LLM_WIDTH = 16, 2, 3, 4, 12
_FOLDER = tempfile.TemporaryDirectory(prefix="toy_encoders_")


@dataclass(frozen=True)
class Toy:
    """One encoder; every field is a choice that changes the exported graph."""

    family: str = "clip"
    attention: str = "sdpa"
    opset: int = 20
    feature_layer: int | tuple[int, ...] = -2
    strategy: str = "default"
    side: int = 16

    @property
    def grid(self) -> tuple[int, int]:
        return (self.side // PATCH, self.side // PATCH)

    @property
    def special(self) -> int:
        """Rows of the attention before the first patch."""
        return 1 if self.family == "clip" else 0

    @property
    def prefix(self) -> int:
        return self.special if self.strategy == "full" else 0

    @property
    def dropped(self) -> int:
        """Rows cut off on the way to the features: "default" drops the first one, CLS or not."""
        return 1 if self.strategy == "default" else 0

    @property
    def tokens(self) -> int:
        """N: rows of the features that may be pruned."""
        return self.grid[0] * self.grid[1] + self.special - self.dropped - self.prefix

    @property
    def layer(self) -> int:
        """0-based number of the layer that makes the deepest feature."""
        layers = self.feature_layer if isinstance(self.feature_layer, tuple) else (self.feature_layer,)
        return max(index % (LAYERS + 1) for index in layers) - 1


class Encoder(torch.nn.Module):
    """Tower and LLaVA projector: pixel_values [B, 3, H, W] → image_features [B, p + N, D]."""

    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.toy = toy
        sizes = {
            "hidden_size": WIDTH,
            "intermediate_size": 24,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "image_size": toy.side,
            "patch_size": PATCH,
            "attn_implementation": toy.attention,
        }
        if toy.family == "clip":
            self.tower = CLIPVisionModel(CLIPVisionConfig(**sizes))
        else:
            self.tower = SiglipVisionModel(SiglipVisionConfig(vision_use_head=False, **sizes))
        selected = len(toy.feature_layer) if isinstance(toy.feature_layer, tuple) else 1
        self.linear_1 = torch.nn.Linear(WIDTH * selected, LLM_WIDTH)
        self.linear_2 = torch.nn.Linear(LLM_WIDTH, LLM_WIDTH)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.project(self.tower(pixel_values, output_hidden_states=True).hidden_states)

    def project(self, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        chosen = self.toy.feature_layer
        if isinstance(chosen, tuple):
            features = torch.cat([states[index][:, self.toy.dropped :] for index in chosen], dim=-1)
        else:
            features = states[chosen][:, self.toy.dropped :]
        return self.linear_2(torch.nn.functional.gelu(self.linear_1(features)))


@functools.cache
def encoder(toy: Toy) -> Encoder:
    """The model of a configuration, with weights large enough for attention to prefer something."""
    torch.manual_seed(0)
    model = Encoder(toy).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5 if "q_proj" in name or "k_proj" in name else 0.2)
            elif "bias" in name:
                parameter.normal_(std=0.1)
    return model


@functools.cache
def export(toy: Toy) -> Path:
    """ONNX file of a configuration, weights beside it in `<name>.onnx.data`."""
    example = torch.zeros(2, 3, toy.side, toy.side)
    with warnings.catch_warnings():
        # torch 2.13 pickles pytree specs of its own deprecated class while exporting.
        warnings.filterwarnings(
            "ignore", message=r".*isinstance\(treespec, LeafSpec\).*", category=FutureWarning
        )
        program = torch.onnx.export(
            encoder(toy),
            (example,),
            dynamo=True,
            opset_version=toy.opset,
            input_names=["pixel_values"],
            output_names=["image_features"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("images", min=1, max=64)}},
            verbose=False,
        )
    layers = "_".join(str(index) for index in np.atleast_1d(toy.feature_layer))
    name = f"{toy.family}_{toy.attention}_{toy.opset}_{layers}_{toy.strategy}_{toy.side}.onnx"
    path = Path(_FOLDER.name) / name
    assert program is not None
    program.save(str(path), external_data=True)
    return path


def pixels(toy: Toy, images: int, seed: int = 0) -> np.ndarray:
    """float32 [images, 3, H, W] of noise."""
    return np.random.default_rng(seed).standard_normal((images, 3, toy.side, toy.side), dtype=np.float32)


@dataclass(frozen=True)
class Reference:
    """Unpruned features [B, p + N, D], and attention probabilities [B, H, Q, Q] of every layer."""

    toy: Toy
    features: np.ndarray
    attentions: tuple[np.ndarray, ...]

    def scores(self, aggregation: str, layer: int | None = None) -> np.ndarray:
        """float32 [B, N], by the formulas of the FoPru specification."""
        toy = self.toy
        attention = torch.from_numpy(self.attentions[toy.layer if layer is None else layer])
        if aggregation == "cls":
            received = attention[:, :, 0, :].mean(dim=1)
        elif aggregation == "col_mean_patch":
            received = attention[:, :, toy.special :, :].mean(dim=(1, 2))
        else:
            received = attention.mean(dim=(1, 2))
        first = toy.dropped + toy.prefix
        return received[:, first : first + toy.tokens].numpy()


def reference(toy: Toy, images: np.ndarray) -> Reference:
    """Run the encoder in PyTorch with eager attention, the only kind that returns probabilities."""
    model = copy.deepcopy(encoder(toy))
    model.tower.set_attn_implementation("eager")
    with torch.no_grad():
        states = model.tower(torch.from_numpy(images), output_hidden_states=True, output_attentions=True)
        features = model.project(states.hidden_states)
    return Reference(toy, features.numpy(), tuple(attention.numpy() for attention in states.attentions))


def select_rank(scores: np.ndarray, keep: int) -> np.ndarray:
    """int64 [B, keep]: positions of the highest scores, ties to the lower position, ascending."""
    return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :keep], axis=1)


def select_rows(scores: np.ndarray, grid: tuple[int, int], keep: int) -> np.ndarray:
    """int64 [B, keep]: all tokens of the keep / C rows with the highest mean score, ascending."""
    rows, columns = grid
    best = select_rank(scores.reshape(-1, rows, columns).mean(axis=2), keep // columns)
    return (best[:, :, None] * columns + np.arange(columns)).reshape(len(scores), -1)


_TEXT = """
<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
encoder (float[{images},{rows},8] x) => (float[{images},{kept},8] image_features)
<float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8,8] wo, float[8] scale, float[8] bias,
 int64[4] heads = {{0, 0, 2, 4}}, int64[3] merge = {{0, 0, 8}}, float half = {{0.5}},
 int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] three = {{3}},
 int64[1] many = {{1000}}, int64[1] minus = {{-1}}{more}>
{{
  u = LayerNormalization(x, scale, bias)
  q0 = MatMul(u, wq)  k0 = MatMul(u, wk)  v0 = MatMul(u, wv)
  q1 = Reshape(q0, heads)  k1 = Reshape(k0, heads)  v1 = Reshape(v0, heads)
  q = Transpose<perm=[0,2,1,3]>(q1)  k = Transpose<perm=[0,2,3,1]>(k1)  v = Transpose<perm=[0,2,1,3]>(v1)
  {attention}
  {tail}
}}
"""
_ATTENTION = "s = MatMul(q, k) l = Mul(s, half) p = Softmax<axis=-1>(l) a = MatMul(p, v)"
_MERGE = "a1 = Transpose<perm=[0,2,1,3]>(a) a2 = Reshape(a1, merge) a3 = MatMul(a2, wo) y = Add(x, a3)"
_SLICE = "image_features = Slice(y, one, many, one, one)"


def text_encoder(
    *, attention: str = _ATTENTION, merge: str = _MERGE, tail: str = _SLICE, kept: int = 6, **choices: object
) -> ir.Model:
    """One layer by hand: x [images, 7, 8] → features [images, 6, 8]; a CLS row and a 2x3 grid.

    Args:
        attention: from q, v [B, 2, 7, 4] and k [B, 2, 4, 7] to a [B, 2, 7, 4].
        merge: from a and x to y [B, 7, 8]; both texts are one line of ONNX each.
        tail: from y to image_features [B, kept, 8].
        choices: `opset`, `images`, `rows`, `more` (declarations, starting with a comma), `tensors`.
    """
    tensors = choices.pop("tensors", {})
    assert isinstance(tensors, dict)
    text = _TEXT.format(
        **{"opset": 20, "images": "images", "rows": 7, "more": "", **choices},
        attention=attention,
        tail=f"{merge} {tail}",
        kept=kept,
    )
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((8, 8), dtype=np.float32) for name in ("wq", "wk", "wv", "wo")}
    arrays.update(scale=np.ones(8, np.float32), bias=np.zeros(8, np.float32), **tensors)
    model = ir.from_onnx_text(
        text, initializers=[ir.tensor(array, name=name) for name, array in arrays.items()]
    )
    for position, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{position}"
    return model
