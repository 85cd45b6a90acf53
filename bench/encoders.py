"""Bare vision encoders of published shapes with random weights, exported as anybody would, one file each.

What `fopru_graph` is measured on: no projector, no bundle, every row an output.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.configurations import CLIP_L_336, SIGLIP_SO400M_384
from bench.environment import package_versions
from bench.errors import BenchError

__all__ = ["ENCODERS", "EncoderShape", "ensure_encoder"]


@dataclass(frozen=True)
class EncoderShape:
    """One encoder; `about` says whose shape it is, `config` is what `transformers` builds it from."""

    name: str
    about: str
    config: dict[str, Any]

    @property
    def tokens(self) -> int:
        """N, patches per image."""
        return int(self.config["image_size"] // self.config["patch_size"]) ** 2


_VIT_H = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "patch_size": 14}
ENCODERS = {
    shape.name: shape
    for shape in (
        EncoderShape("clip-l-336", "CLIP ViT-L/14-336, 24 layers", CLIP_L_336),
        EncoderShape(
            "siglip-so400m-384",
            "SigLIP so400m/14-384, 27 layers",
            SIGLIP_SO400M_384 | {"num_hidden_layers": 27},
        ),
        EncoderShape(
            "patches-4096",
            "SigLIP layers of width 1280 at 896 x 896: 4,096 patches, 16 heads of 80; 8 layers",
            {"model_type": "siglip_vision_model", **_VIT_H, "num_hidden_layers": 8, "image_size": 896}
            | {"vision_use_head": False},
        ),
        EncoderShape(
            "clip-h-224",
            "CLIP ViT-H/14-224, 32 layers: 2.5 GB of float32 weights",
            {"model_type": "clip_vision_model", **_VIT_H, "num_hidden_layers": 32, "image_size": 224},
        ),
        EncoderShape(
            "tiny",
            "a small CLIP encoder, for tests",
            CLIP_L_336
            | {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
            | {"image_size": 112, "projection_dim": 64},
        ),
    )
}


def ensure_encoder(name: str, opset: int, folder: Path) -> Path:
    """ONNX file of an encoder at `folder/<name>-<opset>/encoder.onnx`; exported where it is not there yet.

    One input `pixel_values` float32 [images, 3, S, S], one output `last_hidden_state`; the number of images
    varies; weights are in a file beside it.

    Raises:
        BenchError: an unknown name.
    """
    if name not in ENCODERS:
        raise BenchError(f"no encoder is called {name!r}: choose one of {', '.join(ENCODERS)}")
    target = folder / f"{name}-opset{opset}"
    stamp = target / "recipe"
    record = json.dumps([asdict(ENCODERS[name]), opset, package_versions().get("torch")])
    if not stamp.is_file() or stamp.read_text() != record:
        target.mkdir(parents=True, exist_ok=True)
        _export(ENCODERS[name], opset, target / "encoder.onnx")
        stamp.write_text(record)
    return target / "encoder.onnx"


def _export(shape: EncoderShape, opset: int, path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    config = dict(shape.config)
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(config.pop("model_type"), **config))

    class Rows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.eval()

        def forward(self, pixel_values: torch.Tensor) -> Any:
            return self.model(pixel_values).last_hidden_state

    size = int(config["image_size"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            Rows(),
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            opset_version=opset,
            input_names=["pixel_values"],
            output_names=["last_hidden_state"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("images", min=1, max=64)}},
            verbose=False,
        )
    if program is None:
        raise BenchError(f"torch exported nothing for {shape.name}")
    program.save(str(path), external_data=True)
