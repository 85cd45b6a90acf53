"""The C++ TensorRT backend against stand-ins for TensorRT and CUDA; which engine it takes, against Python."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle import load_bundle
from runtime.errors import BundleError, EngineError
from runtime.manifest import Manifest
from runtime.tensorrt.engines import find_engine, graph_hash
from runtime.tensorrt.identity import Probe, find_identity, jetpack_of
from runtime.tensorrt.plan import Limits, plan_engines
from tests.cpp_build import cpp_tool

DATA = Path(__file__).parent / "data" / "bundle_v3"
GPU, SM, TENSORRT = "NVIDIA GeForce RTX 3090", 86, "10.3.0"
TAG = "rtx-3090-sm86-trt10.3.0"


@pytest.mark.parametrize("sanitize", ["", "address,undefined"])
def test_the_backend_runs_on_the_stand_ins(sanitize: str) -> None:
    tests = cpp_tool("fopru_tensorrt_tests", sanitize)
    done = subprocess.run([str(tests)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "0 skipped" in done.stdout
    assert "test cases: 0 " not in done.stdout


def test_threads_share_a_session_without_a_race() -> None:
    tests = cpp_tool("fopru_tensorrt_tests", "thread")
    case = "--test-case=a session is used by several threads*"
    done = subprocess.run([str(tests), case], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "1 passed" in done.stdout


def test_jetpacks_are_those_of_python() -> None:
    draw = random.Random(7)
    releases = [
        "",
        "R",
        "R36",
        "# R36 (release), REVISION: 4",
        "xR36 (release), REVISION: 4.3.1",
        "R36 (release)",
    ]
    for _ in range(300):
        major, minor, patch = draw.randint(31, 41), draw.randint(0, 6), draw.randint(0, 9)
        releases.append(f"# R{major} (release), REVISION: {minor}.{patch}, GCID: {draw.random()}")
        releases.append(draw.choice("R# ") * draw.randint(0, 3) + f"R{major} (release), REVISION: {minor}")
    assert ask([{"release": text} for text in releases]) == [{"value": jetpack_of(text)} for text in releases]


def test_devices_have_the_names_of_python(tmp_path: Path) -> None:
    names = [
        "NVIDIA GeForce RTX 3090",
        "NVIDIA H100 80GB HBM3",
        "Tesla T4",
        "GeForce GTX 1080 Ti",
        "NVIDIA RTX 6000 Ada",
    ]
    questions: list[dict[str, Any]] = []
    expected: list[dict[str, Any]] = []
    for name in names:
        for chip, release in (
            ("", ""),
            ("tegra234", "36"),
            ("tegra264", "38"),
            ("tegra194", "35"),
            ("tegra999", ""),
        ):
            root = tmp_path / f"{len(questions)}"
            write(root / "proc/device-tree/compatible", f"nvidia,p3768\0nvidia,{chip}\0")
            write(root / "etc/nv_tegra_release", f"# R{release} (release), REVISION: 4.3, GCID: 1")
            questions.append({"gpu": name, "sm": 86, "tensorrt": TENSORRT, "root": str(root)})
            identity = find_identity(probe(root, name))
            expected.append({"value": [identity.tag, str(identity)]})
    assert ask(questions) == expected


@pytest.mark.parametrize(
    "version", ["bundle_v1", "bundle_v2", "bundle_v2_tiles", "bundle_v3", "bundle_v3_q4"]
)
def test_graphs_have_the_hash_of_python(version: str) -> None:
    folder = DATA.parent / version
    manifest = load_bundle(folder).manifest
    found = ask([{"bundle": str(folder), "hash": graph} for graph in manifest.graphs])
    assert found == [{"value": graph_hash(manifest, graph)} for graph in manifest.graphs]


def test_engines_are_found_and_refused_as_python_does(tmp_path: Path) -> None:
    bundle = tmp_path / "a bundle"
    shutil.copytree(DATA, bundle)
    for path in (bundle, *bundle.rglob("*")):
        path.chmod(0o755)
    manifest = load_bundle(bundle).manifest
    identity = find_identity(probe(tmp_path, GPU))
    assert identity.tag == TAG
    refused: set[str] = set()
    for seed in range(80):
        shutil.rmtree(bundle / "engines", ignore_errors=True)
        change(random.Random(seed), bundle, manifest)
        files = [bundle / info.file for info in manifest.graphs.values()] + [bundle / "onnx/none.onnx"]
        asked: list[dict[str, Any]] = [
            {"file": str(path), "gpu": GPU, "sm": SM, "tensorrt": TENSORRT, "root": str(tmp_path)}
            for path in files
        ]
        for path, got in zip(files, ask(asked), strict=True):
            try:
                expected: dict[str, Any] = {"value": str(find_engine(path, identity))}
            except (BundleError, EngineError) as error:
                expected = {"error": [type(error).__name__, str(error)]}
                refused.add(str(error).replace(str(bundle), "")[:20])
            assert in_order(got) == in_order(expected), seed
    assert len(refused) > 6


def in_order(answer: dict[str, Any]) -> dict[str, Any]:
    """With the listed graphs sorted: those of a manifest have no order in C++."""
    if "error" in answer and " is no graph of " in answer["error"][1]:
        words, _, listed = answer["error"][1].rpartition("give one of ")
        return {"error": [answer["error"][0], words, sorted(listed.split(", "))]}
    return answer


def change(draw: random.Random, bundle: Path, manifest: Manifest) -> None:
    """Engines of a device, one thing of which may be wrong."""
    limits = Limits(
        max_prompt=draw.choice([512, 640]),
        ratio=draw.choice([None, 0.25]),
        max_ratio=draw.choice([1.0, 0.5]),
        unpruned=draw.random() < 0.5,
    )
    plan = plan_engines(manifest, limits, draw.choice([1 << 30, 700 << 20]))
    tag = draw.choice([TAG, TAG, TAG, TAG, "orin-sm87-trt10.3.0-jp6.2"])
    folder = bundle / "engines" / tag
    engines: dict[str, Any] = {}
    for graph in plan.graphs:
        content = b"\0engine" * draw.randint(1, 9)
        write(folder / f"{graph.graph}.engine", content.decode())
        engines[graph.graph] = {
            "file": f"{graph.graph}.engine",
            "bytes": len(content),
            "onnx": graph_hash(manifest, graph.graph),
        }
    record: dict[str, Any] = {
        "format": 1,
        "created_by": "0",
        "identity": {"gpu": "rtx-3090", "sm": SM, "tensorrt": TENSORRT, "jetpack": None},
        "plan": plan.to_dict(),
        "engines": engines,
    }
    one = draw.choice(list(engines))
    spoil = draw.randint(0, 11)
    if spoil == 0:
        record["identity"]["sm"] = 89
    elif spoil == 1:
        record["identity"] |= {"gpu": "orin", "jetpack": "6.2"}
    elif spoil == 2:
        engines[one]["onnx"] = "0" * 64
    elif spoil == 3:
        engines[one]["bytes"] += 1
    elif spoil == 4:
        del engines[one]
    elif spoil == 5:
        record["format"] = draw.choice([0, 2, None])
    elif spoil == 6:
        (folder / f"{one}.engine").unlink()
    elif spoil == 7:
        record["identity"]["jet"] = 1
    elif spoil == 8:
        engines["nothing"] = engines.pop(one)
    elif spoil == 9:
        del engines[one]["bytes"]
    elif spoil == 10:
        engines[one]["bytes"] = draw.choice(["1", 1.5, None, True])
    write(folder / "engines.json", json.dumps(record))


def probe(root: Path, name: str) -> Probe:
    """A machine with that GPU and a Debian package of TensorRT."""

    def run(command: Any) -> str | None:
        if command[0] == "nvidia-smi":
            return f"{name}, {SM // 10}.{SM % 10}\n"
        return f"{TENSORRT}.26-1+cuda12.5" if command[0] == "dpkg-query" else None

    return Probe(root, run, lambda: None)


def ask(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of the C++ program."""
    text = "".join(json.dumps(question) + "\n" for question in questions)
    tool = cpp_tool("probe_tensorrt")
    done = subprocess.run([str(tool)], input=text, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
