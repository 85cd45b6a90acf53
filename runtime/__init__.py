"""Runs a bundle: images and a prompt in, text out, with visual-token pruning chosen per request.

    bundle = load_bundle("bundles/demo")
    result = Generator(bundle).generate(Request("How many digits are there?", ("photo.png",), ratio=0.3))
    print(result.text, result.visual_tokens_before, result.visual_tokens_after)

Needs numpy; onnxruntime, tokenizers and Pillow are imported when a stage first needs them.
"""

from __future__ import annotations

from runtime.bundle import Bundle, load_bundle
from runtime.counts import kept_count, kept_rows
from runtime.errors import BackendError, BundleError, FopruError, ImageError, RequestError
from runtime.generator import Generator
from runtime.request import Request, Turn
from runtime.result import Result, Timings
from runtime.reuse import NO_REUSE, Reuse
from runtime.stream import Stream
from runtime.version import __version__
from runtime.vision import EncodedImage, Selection

__all__ = [
    "NO_REUSE",
    "BackendError",
    "Bundle",
    "BundleError",
    "EncodedImage",
    "FopruError",
    "Generator",
    "ImageError",
    "Request",
    "RequestError",
    "Result",
    "Reuse",
    "Selection",
    "Stream",
    "Timings",
    "Turn",
    "__version__",
    "kept_count",
    "kept_rows",
    "load_bundle",
]
