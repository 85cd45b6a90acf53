"""What a report says about a bundle and how it was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from calib.measure.spec import RunnerSpec
from runtime.bundle import Bundle, load_bundle
from runtime.errors import ImageError
from runtime.version import __version__

__all__ = ["TYPICAL", "describe", "device_name"]

TYPICAL = (480, 640)
"""(height, width) of a picture, for models whose number of tokens depends on it."""

_PACKAGES = ("numpy", "onnxruntime", "openvino", "pillow", "tokenizers")


def describe(spec: RunnerSpec) -> dict[str, Any]:
    """Facts for people, ready for JSON.

    `model`, `source`, `family`, `layout`; `tokens` of a picture and `tokens_of`, which one; `strategy`,
    `layer`, `aggregation`, `default_ratio`, `default_tokens`, `position_ids`; `backend`, `threads`,
    `max_new_tokens`, `seed`; `precisions`: by label, of each graph; `device`: the CPU's name; `machine`;
    `versions`.

    Raises:
        BundleError: a bundle is missing or damaged.
    """
    bundles = {label: load_bundle(path, verify=False) for label, path in spec.bundles}
    manifest = bundles[""].manifest
    pruning = manifest.pruning
    tokens, which = _typical(bundles[""])
    return {
        "model": manifest.model.name,
        "source": manifest.model.source,
        "family": manifest.model.family,
        "layout": manifest.layout.kind,
        "tokens": tokens,
        "tokens_of": which,
        "strategy": pruning.strategy,
        "layer": pruning.layer,
        "aggregation": pruning.aggregation,
        "default_ratio": pruning.default_ratio,
        "default_tokens": pruning.default_tokens,
        "position_ids": pruning.position_ids,
        "backend": spec.backend,
        "threads": spec.threads,
        "max_new_tokens": spec.max_new_tokens,
        "seed": spec.seed,
        "precisions": {
            label: {name: graph.precision for name, graph in bundle.manifest.graphs.items()}
            for label, bundle in bundles.items()
        },
        "device": device_name(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {"fopru-edge": __version__, "python": platform.python_version(), **_versions()},
    }


def _typical(bundle: Bundle) -> tuple[int | None, str]:
    """Visual tokens of a picture, and of which."""
    layout = bundle.manifest.layout
    if layout.image_tokens is not None:
        return layout.image_tokens, "every picture"
    which = f"a picture of {TYPICAL[1]} x {TYPICAL[0]} pixels"
    try:
        plan = layout.plan(*TYPICAL)
    except ImageError:
        return None, which
    return plan.placeholders - layout.prefix_tokens * len(plan.units), which


def device_name(listing: Path = Path("/proc/cpuinfo")) -> str:
    """What the system calls its CPU (`Model`: boards whose kernel names no CPU), else the architecture."""
    if listing.is_file():
        for line in listing.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
