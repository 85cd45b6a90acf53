"""The public surface of the package, and the errors of absent packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import runtime
from runtime import errors
from runtime.lazy import require

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = {
    *("Bundle", "load_bundle", "Generator", "Request", "Turn", "Result", "Timings", "Stream"),
    *("EncodedImage", "Selection", "kept_count", "kept_rows", "__version__"),
    *("Reuse", "NO_REUSE"),
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


def test_onnx_runtime_reports_nothing_and_keeps_nothing(tmp_path: Path) -> None:
    code = (
        "from runtime.backend import BackendOptions, create_backend\n"
        "create_backend('onnxruntime', BackendOptions())\n"
        "import onnxruntime; onnxruntime.SessionOptions(); print(onnxruntime.get_available_providers())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CPUExecutionProvider" in done.stdout
    assert list(tmp_path.rglob("*")) == []


def broken_package(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose import runs `body`."""
    name = "broken_for_this_test"
    (folder / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


@pytest.mark.parametrize("body", ["raise ImportError('libx.so is missing')", "import not_there_either"])
def test_package_that_is_installed_and_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    name = broken_package(tmp_path, body, monkeypatch)
    message = (
        r"the package onnxruntime is installed, but cannot be imported \(.*(libx|not_there).*\): "
        r"pip install --force-reinstall 'fopru-edge\[runtime\]'"
    )
    with pytest.raises(errors.BackendError, match=message):
        require(name, "onnxruntime")


def test_ctrl_c_during_an_import_is_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "try:\n    raise KeyboardInterrupt\nexcept BaseException as e:\n    raise ImportError from e\n"
    name = broken_package(tmp_path, body, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        require(name, "onnxruntime")
