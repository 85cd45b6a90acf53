"""The public surface of the package, and the errors of absent packages."""

from __future__ import annotations

import sys

import pytest

import runtime
from runtime import errors
from runtime.lazy import require

PUBLIC = {
    *("Bundle", "load_bundle", "Generator", "Request", "Turn", "Result", "Timings", "Stream"),
    *("EncodedImages", "Selection", "kept_count", "kept_rows", "__version__"),
    *("FopruError", "BundleError", "ImageError", "RequestError", "BackendError"),
}


def test_public_names() -> None:
    assert set(runtime.__all__) == PUBLIC
    assert all(getattr(runtime, name) is not None for name in PUBLIC)


def test_every_error_has_one_base_and_is_in_the_tree() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.FopruError)
        assert name in str(errors.__doc__)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    message = r"needs the package pillow, which is not installed: pip install 'fopru-edge\[gpu\]'"
    with pytest.raises(errors.BackendError, match=message):
        require("PIL.Image", "pillow", extra="gpu")
