"""Everything the runtime raises on purpose.

    FopruError
    ├── BundleError    the bundle directory is missing, damaged, too new, or not a bundle
    ├── ImageError     an image cannot be read or has an unusable shape
    ├── RequestError   a request asks for something outside its range (ratio, tokens, prompt, sampling)
    ├── BackendError   a backend is unknown, not installed, or failed while running a graph
    └── EngineError    a TensorRT engine is missing, of another device or graph, too large, or cannot be built

Every message is one sentence with the value got, the values allowed, and the way out.
"""

from __future__ import annotations

__all__ = ["BackendError", "BundleError", "EngineError", "FopruError", "ImageError", "RequestError"]


class FopruError(Exception):
    """Base of every error the runtime raises on purpose."""


class BundleError(FopruError):
    """The bundle cannot be used: missing, damaged, from a newer format, or not a bundle."""


class ImageError(FopruError):
    """An image cannot be read, or is not an image."""


class RequestError(FopruError):
    """A request is outside what this bundle can do."""


class BackendError(FopruError):
    """A backend is unknown, not installed, or failed to run a graph."""


class EngineError(FopruError):
    """A TensorRT engine is missing, belongs to another device or graph, does not fit, or cannot be built."""
