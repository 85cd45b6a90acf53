"""Import arrows: who may import whom, and that the runtime starts without the heavy packages."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("export", "fopru_graph", "calib", "runtime", "demo", "bench")
# package -> what it may import besides the standard library and itself, at any depth of the module
ALLOWED = {
    "runtime": {"numpy", "onnxruntime", "openvino", "tokenizers", "PIL"},
    "fopru_graph": {"numpy", "onnx_ir", "onnx", "onnx_shape_inference", "rich", "tensorrt_rtx"},
    "calib": {
        *("runtime", "fopru_graph", "numpy", "onnx", "onnx_ir", "ml_dtypes", "onnxruntime", "rich", "PIL"),
        *("pyarrow", "scipy", "matplotlib", "jinja2", "datasets", "ray"),
    },
    "export": {
        *(
            "fopru_graph",
            "calib",
            "runtime",
            "numpy",
            "torch",
            "transformers",
            "onnx",
            "onnx_ir",
            "onnxscript",
        ),
        *("safetensors", "tokenizers", "huggingface_hub", "rich", "PIL", "ml_dtypes"),
    },
}
# lazily only: never at module level, so that a device needs what it runs and nothing else
LAZY: dict[str, set[str]] = {
    "runtime": {"onnxruntime", "openvino", "tokenizers", "PIL"},
    "calib": {"onnxruntime", "rich", "PIL", "pyarrow", "scipy", "matplotlib", "jinja2", "datasets", "ray"},
    "fopru_graph": {"rich", "tensorrt_rtx"},
}
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "tokenizers", "PIL", "tensorrt")


def imported(tree: ast.AST, *, top_level_only: bool) -> Iterator[str]:
    nodes = ast.iter_child_nodes(tree) if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_arrows(package: str) -> None:
    allowed = ALLOWED[package] | {package} | set(sys.stdlib_module_names)
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in modules(package)
        for name in imported(ast.parse(path.read_text()), top_level_only=False)
        if name not in allowed
    }
    assert wrong == set()


@pytest.mark.parametrize("package", sorted(LAZY))
def test_heavy_imports_are_lazy(package: str) -> None:
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in modules(package)
        for name in imported(ast.parse(path.read_text()), top_level_only=True)
        if name in LAZY[package]
    }
    assert wrong == set()


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    code = f"import sys, runtime; print([m for m in {HEAVY} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", OURS)
def test_package_resolves_inside_this_checkout(package: str) -> None:
    # `export` and `runtime` are names another wheel may install
    module = importlib.import_module(package)
    assert Path(str(module.__file__)).is_relative_to(ROOT)


@pytest.mark.parametrize("package", ["export", "fopru_graph", "calib", "runtime"])
def test_every_module_declares_its_public_names(package: str) -> None:
    missing = []
    for path in modules(package):
        if path.name == "__main__.py":
            continue
        tree = ast.parse(path.read_text())
        targets = [t for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)
                   for t in (node.targets if isinstance(node, ast.Assign) else [node.target])]  # fmt: skip
        if not any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            missing.append(str(path.relative_to(ROOT)))
    assert missing == []


@pytest.mark.parametrize("package", ["export", "fopru_graph", "calib", "runtime"])
def test_public_names_exist(package: str) -> None:
    for path in modules(package):
        if path.name == "__main__.py":
            continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        module = importlib.import_module(name)
        missing = [public for public in module.__all__ if not hasattr(module, public)]
        assert missing == [], name
