"""Vision encoders of real architectures with random weights, exported by the exporters themselves.

Nothing here knows `fopru_graph`. A `Case` says how an encoder is built and exported, and what a rewriter that
is told nothing must find in it. Each case is exported once per process; an export takes about a second.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

__all__ = [
    "DYNAMO",
    "SPECIAL",
    "TORCHSCRIPT",
    "Case",
    "Reference",
    "all_cases",
    "export",
    "pixels",
    "reference",
]

WIDTH, HEADS, LAYERS, PATCH, SIDE = 32, 4, 2, 8, 32
DYNAMO = ("dynamo18", "dynamo20", "dynamo23")
TORCHSCRIPT = ("torchscript14", "torchscript17")
# Rows of the attention that are not patches: class token, distillation token, registers.
SPECIAL = {"clip": 1, "siglip": 0, "vit": 1, "deit": 2, "dinov2": 5, "packed": 1, "torch": 1, "sequence": 1}
_OUTPUTS = ("pooled", "hidden", "patches")
_FOLDER = tempfile.TemporaryDirectory(prefix="exporter_zoo_")


@dataclass(frozen=True)
class Case:
    """One export; every field is a choice that changes the graph.

    Attributes:
        architecture: `clip`, `siglip`, `vit`, `deit` (two special tokens), `dinov2` (four registers) of
            transformers; `packed` projects Q, K and V at once (timm); `torch` uses nn.MultiheadAttention
            (torchvision), `sequence` does so on [tokens, images, width] (open_clip).
        attention: `eager` or `sdpa`.
        exporter: `dynamo` or `torchscript`, with the opset.
        sizes: `fixed`, or `dynamic` for images of any height and width.
        batch: `dynamic`, or `one`: the only image of the example.
        half: whether the model is float16.
        outputs: `last`: the last hidden state; `pooled`: and the pooled one; `hidden`: and all hidden states,
            the features being those of the first layer; `patches`: the last state without special rows.
        named: whether nodes, tensors and scopes keep their names.
    """

    architecture: str = "clip"
    attention: str = "sdpa"
    exporter: str = "dynamo20"
    sizes: str = "fixed"
    batch: str = "dynamic"
    half: bool = False
    outputs: str = "last"
    named: bool = True

    def __str__(self) -> str:
        odd = [self.sizes] * (self.sizes == "dynamic") + ["batch 1"] * (self.batch == "one")
        odd += ["float16"] * self.half + [self.outputs] * (self.outputs != "last")
        odd += ["nameless"] * (not self.named)
        return " ".join([self.architecture, self.attention, self.exporter, *odd])

    @property
    def opset(self) -> int:
        return int(self.exporter[-2:])

    @property
    def features(self) -> str:
        return "hidden_states.1" if self.outputs == "hidden" else "last_hidden_state"

    @property
    def special(self) -> int:
        return SPECIAL[self.architecture]

    @property
    def prefix(self) -> int:
        """Special rows among the features."""
        return 0 if self.outputs == "patches" else self.special

    @property
    def tokens(self) -> int | str:
        return "tokens" if self.sizes == "dynamic" else (SIDE // PATCH) ** 2

    @property
    def layer(self) -> int:
        return 0 if self.outputs == "hidden" else LAYERS - 1

    @property
    def locator(self) -> str:
        if not self.named:
            return "structure"
        return "scope" if self.exporter in DYNAMO else "name"

    @property
    def form(self) -> str:
        return "attention_op" if self.exporter == "dynamo23" and self.attention == "sdpa" else "softmax"

    @property
    def score_path(self) -> str:
        """Scores need float32: beside the Attention operator and float16, QK^T is multiplied again."""
        return "side_branch" if self.half or self.form == "attention_op" else "one_pass"

    @property
    def gather(self) -> str:
        """Other outputs that need all rows of the last used layer forbid to compute some of them only; so
        does nn.MultiheadAttention, which puts tokens before images between QK^T and the residual.
        """
        shared = self.outputs in ("pooled", "hidden")
        return "late" if shared or self.architecture in ("torch", "sequence") else "early"


def all_cases() -> list[Case]:
    """Every architecture × attention × exporter that can be exported, then the variants of each.

    Left out is what torch's exporters cannot do: TorchScript has no antialiased bicubic resize, which DINOv2
    always runs; dynamo writes the example's size into DINOv2's position embeddings, so that its own graph
    runs at no other size. ONNX Runtime 1.31.1 crashes on loading a float16 nn.MultiheadAttention, pruned or
    not.
    """
    cases = []
    for architecture in SPECIAL:
        own = architecture in ("packed", "torch", "sequence")
        exporters = DYNAMO if architecture == "dinov2" else (*DYNAMO, *TORCHSCRIPT)
        kinds = ("sdpa",) if architecture in ("torch", "sequence") else ("eager", "sdpa")
        cases += [Case(architecture, kind, exporter) for kind in kinds for exporter in exporters]
        outputs = () if own else ("hidden", "patches") if architecture == "deit" else _OUTPUTS
        for exporter in [name for name in exporters if name not in ("dynamo18", "torchscript14")]:
            cases += [Case(architecture, exporter=exporter, outputs=kind) for kind in outputs]
            cases.append(Case(architecture, exporter=exporter, batch="one"))
            cases.append(Case(architecture, exporter=exporter, named=False))
            if not own and architecture != "dinov2":
                cases.append(Case(architecture, exporter=exporter, sizes="dynamic"))
            if exporter in DYNAMO and architecture not in ("torch", "sequence"):
                cases.append(Case(architecture, exporter=exporter, half=True))
    return cases


class _PackedAttention(torch.nn.Module):
    """timm's: one Linear to 3C, [B, N, 3, H, d] → [3, B, H, N, d]."""

    def __init__(self, sdpa: bool) -> None:
        super().__init__()
        self.sdpa = sdpa
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = torch.nn.Linear(WIDTH, WIDTH)

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        images, tokens, _ = x.shape
        packed = self.qkv(x).reshape(images, tokens, 3, HEADS, WIDTH // HEADS)
        return packed.permute(2, 0, 3, 1, 4).unbind(0)

    def probabilities(self, x: torch.Tensor) -> torch.Tensor:
        query, key, _ = self.heads(x)
        return (query * (WIDTH // HEADS) ** -0.5 @ key.transpose(-2, -1)).softmax(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.sdpa:
            attended = torch.nn.functional.scaled_dot_product_attention(*self.heads(x))
        else:
            attended = self.probabilities(x) @ self.heads(x)[2]
        return self.proj(attended.transpose(1, 2).reshape(x.shape))


class _TorchAttention(torch.nn.Module):
    """nn.MultiheadAttention as torchvision (`sequence_first=False`) and open_clip call it."""

    def __init__(self, sequence_first: bool) -> None:
        super().__init__()
        self.mha = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=not sequence_first)

    def probabilities(self, x: torch.Tensor) -> torch.Tensor:
        return self.mha(x, x, x, need_weights=True, average_attn_weights=False)[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mha(x, x, x, need_weights=False)[0]


class _Block(torch.nn.Module):
    def __init__(self, attention: torch.nn.Module) -> None:
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(WIDTH)
        self.attn = attention
        self.norm2 = torch.nn.LayerNorm(WIDTH)
        hidden = [torch.nn.Linear(WIDTH, 48), torch.nn.GELU(), torch.nn.Linear(48, WIDTH)]
        self.mlp = torch.nn.Sequential(*hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _PlainTower(torch.nn.Module):
    """A ViT that is not of transformers: pixel_values [B, 3, H, W] → last hidden state [B, 1 + N, D]."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.sequence_first = case.architecture == "sequence"
        self.patch_embed = torch.nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, (SIDE // PATCH) ** 2 + 1, WIDTH))
        self.blocks = torch.nn.ModuleList(_Block(self._attention(case)) for _ in range(LAYERS))
        self.norm = torch.nn.LayerNorm(WIDTH)

    @staticmethod
    def _attention(case: Case) -> torch.nn.Module:
        if case.architecture == "packed":
            return _PackedAttention(case.attention == "sdpa")
        return _TorchAttention(case.architecture == "sequence")

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        first = self.cls_token.expand(patches.shape[0], -1, -1)
        x = torch.cat([first, patches], dim=1) + self.pos_embed
        if self.sequence_first:
            x = x.transpose(0, 1)
        for block in self.blocks:
            x = block(x)
        if self.sequence_first:
            x = x.transpose(0, 1)
        return self.norm(x)


class _Encoder(torch.nn.Module):
    """pixel_values [B, 3, H, W] → the outputs of a case, the last hidden state first."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.tower = _TOWERS[case.architecture](case)
        # DINOv2 always interpolates its position embeddings, and has no switch for it.
        fits_any_size = case.sizes == "dynamic" and case.architecture != "dinov2"
        self.choices = {"interpolate_pos_encoding": True} if fits_any_size else {}

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs, case = self.case.outputs, self.case
        if isinstance(self.tower, _PlainTower):
            return (self.tower(pixel_values),)
        made = self.tower(pixel_values, output_hidden_states=outputs == "hidden", **self.choices)
        if outputs == "patches":
            return (made.last_hidden_state[:, case.special :],)
        if outputs == "pooled":
            return made.last_hidden_state, made.pooler_output
        if outputs == "hidden":
            return made.last_hidden_state, *made.hidden_states
        return (made.last_hidden_state,)


def _sizes(case: Case) -> dict[str, object]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "image_size": SIDE,
        "patch_size": PATCH,
        "attn_implementation": case.attention,
    }


def _siglip(case: Case) -> torch.nn.Module:
    return SiglipVisionModel(SiglipVisionConfig(vision_use_head=case.outputs == "pooled", **_sizes(case)))


def _vit(case: Case) -> torch.nn.Module:
    return ViTModel(ViTConfig(**_sizes(case)), add_pooling_layer=case.outputs == "pooled")


_TOWERS: dict[str, Callable[[Case], torch.nn.Module]] = {
    "clip": lambda case: CLIPVisionModel(CLIPVisionConfig(**_sizes(case))),
    "siglip": _siglip,
    "vit": _vit,
    "deit": lambda case: DeiTModel(DeiTConfig(**_sizes(case)), add_pooling_layer=False),
    "dinov2": lambda case: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(num_register_tokens=SPECIAL["dinov2"] - 1, **_sizes(case))
    ),
    "packed": _PlainTower,
    "torch": _PlainTower,
    "sequence": _PlainTower,
}


@functools.cache
def encoder(case: Case) -> torch.nn.Module:
    """The model of a case, with weights large enough for attention to prefer something."""
    torch.manual_seed(0)
    model = _Encoder(case).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3 if any(part in name for part in ("q_proj", "k_proj")) else 0.15)
                if "qkv" in name or "in_proj" in name:
                    parameter[: 2 * WIDTH].mul_(2)
            elif "bias" in name:
                parameter.normal_(std=0.1)
    return model.half() if case.half else model


def output_names(case: Case) -> list[str]:
    more = {"pooled": ["pooler_output"], "hidden": [f"hidden_states.{i}" for i in range(LAYERS + 1)]}
    return ["last_hidden_state", *more.get(case.outputs, [])]


@functools.cache
def export(case: Case) -> Path:
    """ONNX file of a case, weights inside."""
    path = Path(_FOLDER.name) / f"{str(case).replace(' ', '_')}.onnx"
    if not case.named:
        _strip_names(export(dataclasses.replace(case, named=True)), path)
        return path
    images = 1 if case.batch == "one" else 2
    width = SIDE + PATCH if case.sizes == "dynamic" else SIDE
    example = torch.zeros(images, 3, SIDE, width, dtype=torch.float16 if case.half else torch.float32)
    with warnings.catch_warnings():
        for message, category in _EXPORT_WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=category)
        if case.exporter in DYNAMO:
            _export_dynamo(case, example, path)
        else:
            _export_torchscript(case, example, path)
    return path


# What torch 2.13 says while exporting; nothing of it concerns the graph.
_EXPORT_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    (r".*isinstance\(treespec, LeafSpec\).*", FutureWarning),
    (r"You are using the legacy TorchScript-based ONNX export", DeprecationWarning),
    (r"The feature will be removed. Please remove usage of this function", DeprecationWarning),
    (r"Converting a tensor to a Python (boolean|integer|float)", torch.jit.TracerWarning),
)


def _export_dynamo(case: Case, example: torch.Tensor, path: Path) -> None:
    varying = {} if case.batch == "one" else {0: torch.export.Dim("images", min=1, max=64)}
    if case.sizes == "dynamic":
        varying |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        encoder(case),
        (example,),
        dynamo=True,
        opset_version=case.opset,
        input_names=["pixel_values"],
        output_names=output_names(case),
        dynamic_shapes={"pixel_values": varying or None},
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)


def _export_torchscript(case: Case, example: torch.Tensor, path: Path) -> None:
    axes: dict[str, dict[int, str]] = {name: {} for name in ("pixel_values", *output_names(case))}
    if case.batch == "dynamic":
        axes = {name: {0: "images"} for name in axes}
    if case.sizes == "dynamic":
        axes["pixel_values"] |= {2: "height", 3: "width"}
        for name in output_names(case):
            axes[name] |= {1: "tokens"} if name != "pooler_output" else {}
    torch.onnx.export(
        encoder(case),
        (example,),
        str(path),
        dynamo=False,
        opset_version=case.opset,
        input_names=["pixel_values"],
        output_names=output_names(case),
        dynamic_axes=axes,
    )


def _strip_names(source: Path, target: Path) -> None:
    """Node names, scopes and tensor names go; those of inputs and outputs stay."""
    model = ir.load(source)
    kept = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    for number, node in enumerate(model.graph):
        node.name = None
        node.metadata_props.clear()
        for place, value in enumerate(node.outputs):
            value.metadata_props.clear()
            if value.name not in kept:
                value.name = f"t{number}_{place}"
    for number, value in enumerate(list(model.graph.initializers.values())):
        value.name = f"w{number}"
    ir.save(model, target)


def pixels(case: Case, images: int, size: tuple[int, int] = (SIDE, SIDE), seed: int = 0) -> np.ndarray:
    """[images, 3, H, W] of noise, in the dtype of the case."""
    noise = np.random.default_rng(seed).standard_normal((images, 3, *size), dtype=np.float32)
    return noise.astype(np.float16) if case.half else noise


@dataclass(frozen=True)
class Reference:
    """`features` [B, p + N, D] unpruned; `scores` float32 [B, N] by mean over heads and all queries."""

    features: np.ndarray
    scores: np.ndarray


def reference(case: Case, images: np.ndarray) -> Reference:
    """Run the case in PyTorch: features as exported, probabilities of its layer in float32."""
    place = output_names(case).index(case.features)
    with torch.no_grad():
        features = encoder(case)(torch.from_numpy(images))[place]
        attention = _probabilities(case, torch.from_numpy(images))
    scores = attention.float().mean(dim=(1, 2))[:, case.special :]
    return Reference(features.float().numpy(), scores.numpy())


def _probabilities(case: Case, images: torch.Tensor) -> torch.Tensor:
    """[B, H, Q, Q] of the scoring layer; eager attention is the only kind of transformers that returns it."""
    model = copy.deepcopy(encoder(case))
    if not isinstance(model.tower, _PlainTower):
        model.tower.set_attn_implementation("eager")
        return model.tower(images, output_attentions=True, **model.choices).attentions[case.layer]
    attention = model.tower.blocks[case.layer].attn
    seen: list[torch.Tensor] = []
    attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images)
    return attention.probabilities(seen[0])
