"""ONNX Runtime's TensorRT provider: options from the engine plan, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import runtime.backend
from runtime import contract
from runtime.backend import BackendOptions, create_backend
from runtime.backends import ort_cuda
from runtime.backends.ort_tensorrt import PLAN_FILE, WORKSPACE, joined_profile
from runtime.bundle import load_bundle
from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.request import Request
from runtime.tensorrt.plan import InputProfile, Limits, plan_engines
from tests.ort_double import FakeOrt, install
from tests.toy_bundle import toy_photo


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"ort-tensorrt": "runtime.backends.ort_tensorrt"}
    monkeypatch.setattr(runtime.backend, "_MODULES", runtime.backend._MODULES | names)


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> FakeOrt:
    return install(monkeypatch)


@pytest.fixture
def root(toy_bundle_dir: Path, tmp_path: Path) -> Path:
    """A bundle to which engines may be added."""
    return Path(shutil.copytree(toy_bundle_dir, tmp_path / "bundle"))


def graph(root: Path, name: str = contract.EMBED_TOKENS) -> Path:
    return root / contract.graph_file(name)


OPTIONS = {
    "device_id": "0",
    "trt_max_workspace_size": str(2 << 30),
    "trt_fp16_enable": "0",
    "trt_engine_cache_enable": "1",
    "trt_timing_cache_enable": "1",
}


def test_options(ort: FakeOrt, root: Path) -> None:
    backend = create_backend("ort-tensorrt", BackendOptions())
    for name in (contract.EMBED_TOKENS, contract.VISION_ENCODER_FOPRU, contract.DECODER_PORTABLE):
        backend.open(graph(root, name))
    embed, vision, decoder = [dict(session["providers"][0][1]) for session in ort.sessions]
    for session in ort.sessions:
        names = [provider for provider, _ in session["providers"]]
        assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
        assert session["providers"][1][1] == dict(ort_cuda.CUDA_OPTIONS)
    folder = str(root / "engines/ort-tensorrt" / contract.EMBED_TOKENS)
    assert embed.pop("trt_engine_cache_path") == embed.pop("trt_timing_cache_path") == folder
    assert Path(folder).is_dir()
    plan = plan_engines(load_bundle(root).manifest, Limits(unpruned=True), WORKSPACE)
    longest = plan.graph(contract.EMBED_TOKENS).profiles[0][contract.INPUT_IDS].maximum[1]
    usual = plan.graph(contract.EMBED_TOKENS).profiles[0][contract.INPUT_IDS].optimum[1]
    assert embed == OPTIONS | {
        "trt_profile_min_shapes": "input_ids:1x1",
        "trt_profile_opt_shapes": f"input_ids:1x{usual}",
        "trt_profile_max_shapes": f"input_ids:1x{longest}",
    }
    # The optimum of a shape tensor's values is its maximum.
    least, usually, most = (
        vision[f"trt_profile_{point}_shapes"].split(",") for point in ("min", "opt", "max")
    )
    assert "num_keep:1" in least
    assert set(usually) & set(most) == {text for text in most if text.startswith("num_keep:")}
    assert "past_key_values.0.key:1x0x" in decoder["trt_profile_min_shapes"]
    profiles = plan.graph(contract.DECODER_PORTABLE).profiles
    last = max(profile["past_key_values.1.value"].maximum[1] for profile in profiles)
    assert f"past_key_values.1.value:1x{last}x" in decoder["trt_profile_max_shapes"]
    assert "num_logits_to_keep:1" in decoder["trt_profile_max_shapes"].split(",")


def test_files_with_the_suffix_of_a_precision(ort: FakeOrt, root: Path) -> None:
    record = json.loads((root / "bundle.json").read_text())
    files = record["files"]
    for info in record["graphs"].values():
        old, new = info["file"], info["file"].replace(".onnx", "_fp16.onnx")
        (root / old).rename(root / new)
        info["file"], files[new] = new, files.pop(old)
    (root / "bundle.json").write_text(json.dumps(record))
    backend, manifest = create_backend("ort-tensorrt", BackendOptions()), load_bundle(root).manifest
    for name in (contract.EMBED_TOKENS, contract.VISION_ENCODER, contract.DECODER_PORTABLE):
        backend.open(root / manifest.graphs[name].file)
    assert [Path(session["path"]).stem for session in ort.sessions] == [
        f"{name}_fp16" for name in (contract.EMBED_TOKENS, contract.VISION_ENCODER, contract.DECODER_PORTABLE)
    ]
    (root / PLAN_FILE).write_text(json.dumps(plan_engines(manifest, Limits(), 1 << 20).to_dict()))
    with pytest.raises(
        BackendError, match=r"the plan of .* has no vision_encoder_fp16.onnx, only onnx/vision_.*--unpruned"
    ):
        create_backend("ort-tensorrt", BackendOptions()).open(root / manifest.graphs["vision_encoder"].file)


def test_prefill_and_decode_share_a_profile() -> None:
    prefill = {
        "x": InputProfile((1, 1), (1, 200), (1, 512)),
        "past": InputProfile((1, 0, 4), (1, 0, 4), (1, 900, 4)),
        "k": InputProfile((1,), (5,), (16,), values=True),
    }
    decode = {
        "x": InputProfile((1, 1), (1, 1), (1, 1)),
        "past": InputProfile((1, 1, 4), (1, 300, 4), (1, 999, 4)),
        "k": InputProfile((1,), (5,), (16,), values=True),
    }
    assert joined_profile([prefill, decode]) == {
        "x": InputProfile((1, 1), (1, 1), (1, 512)),
        "past": InputProfile((1, 0, 4), (1, 300, 4), (1, 999, 4)),
        "k": InputProfile((1,), (16,), (16,), values=True),
    }


def test_a_plan_of_the_bundle_is_used(ort: FakeOrt, root: Path) -> None:
    plan = plan_engines(load_bundle(root).manifest, Limits(max_prompt=7, max_images=1), 1 << 20)
    (root / PLAN_FILE).parent.mkdir(parents=True)
    (root / PLAN_FILE).write_text(json.dumps(plan.to_dict()))
    create_backend("ort-tensorrt", BackendOptions()).open(graph(root))
    options = ort.sessions[0]["providers"][0][1]
    assert options["trt_max_workspace_size"] == str(1 << 20)
    longest = plan.graph(contract.EMBED_TOKENS).profiles[0][contract.INPUT_IDS].maximum[1]
    assert options["trt_profile_max_shapes"] == f"input_ids:1x{longest}"
    (root / PLAN_FILE).write_text("{")
    with pytest.raises(BackendError, match=r"plan.json cannot be read \(.*\): write a plan there, or remove"):
        create_backend("ort-tensorrt", BackendOptions()).open(graph(root))


def test_answers_equal_those_of_the_cpu(ort: FakeOrt, root: Path) -> None:
    bundle = load_bundle(root)
    request = Request("a?", (toy_photo((40, 56)),), max_new_tokens=5, ignore_eos=True)
    generator = Generator(bundle, "ort-tensorrt", threads=1)
    assert bundle.manifest.decoder.caches[generator.decoder_graph] == contract.APPEND
    expected = Generator(bundle, "onnxruntime", threads=1).generate(request)
    assert generator.generate(request).token_ids == expected.token_ids


@pytest.mark.parametrize("tells", [True, False])
def test_tensorrt_that_takes_nothing(monkeypatch: pytest.MonkeyPatch, root: Path, tells: bool) -> None:
    install(monkeypatch, left=("Gather",), tells=tells)
    backend = create_backend("ort-tensorrt", BackendOptions())
    message = (
        "TensorrtExecutionProvider took none of its nodes"
        if tells
        else "TensorRT built no engine in .*: use "
    )
    with pytest.raises(BackendError, match=rf"ort-tensorrt opened embed_tokens, but {message}"):
        backend.open(graph(root))
    if not tells:  # an engine in the folder says that TensorRT did take part
        (root / "engines/ort-tensorrt" / contract.EMBED_TOKENS / "one_sm87.engine").touch()
        backend.open(graph(root))


def test_a_bundle_that_cannot_be_written_to(ort: FakeOrt, root: Path) -> None:
    (root / "engines").write_text("a file where a folder should be")
    with pytest.raises(BackendError, match=r"ort-tensorrt keeps its engines in .*cannot be made .*: make"):
        create_backend("ort-tensorrt", BackendOptions()).open(graph(root))
