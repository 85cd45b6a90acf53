"""Bundles in bfloat16: how their numbers are held, what runs them, and how the others refuse them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from calib.precision import parse_precision
from calib.precision.emulate import runnable_copy
from export.build import BuildOptions, build
from runtime import contract
from runtime.backend import BackendOptions, View
from runtime.backends.onnxruntime import OrtBackend
from runtime.backends.openvino import OvBackend
from runtime.backends.ort_cuda import create as create_cuda
from runtime.bundle import Bundle, load_bundle
from runtime.dtypes import storage_dtype
from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.kv_cache import cache_bytes, make_cache
from runtime.manifest import DecoderInfo
from runtime.request import Request
from runtime.reuse import Reuse
from tests import ort_double
from tests.conftest import Maker
from tests.tensorrt_double import Device, installed, write_engines

BRAIN = np.dtype(ml_dtypes.bfloat16)
INFO = DecoderInfo(
    layers=2,
    kv_heads=2,
    head_dim=4,
    hidden_size=8,
    vocab_size=10,
    max_positions=64,
    caches={contract.DECODER_PORTABLE: contract.APPEND},
    cache_dtype="bfloat16",
)


@dataclass(frozen=True)
class Made:
    bundle: Bundle
    engines: Path
    twin: Bundle


@pytest.fixture(scope="module")
def made(toy_checkpoint: Maker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The toy CLIP + Llama in bfloat16, its engines for the double, and its twin in float32."""
    folder = tmp_path_factory.mktemp("bfloat16")
    report = build(
        BuildOptions(
            str(toy_checkpoint("clip-llama")),
            folder / "toy",
            target="jetpack6",
            precision=parse_precision("bf16"),
        )
    )
    assert report.failures == ()
    engines = write_engines(report.bundle, folder / "engines")
    with runnable_copy(report.bundle, ("bf16",)) as twin:
        yield Made(load_bundle(report.bundle), engines, load_bundle(twin))


def ask(**options: Any) -> Request:
    picture = np.random.default_rng(3).integers(0, 256, (40, 33, 3), dtype=np.uint8)
    return Request("what is this?", (picture,), **{"max_new_tokens": 12, "ignore_eos": True, **options})


def test_bfloat16_is_held_in_two_bytes() -> None:
    assert storage_dtype("bfloat16") == np.uint16
    assert storage_dtype("float16") == np.float16
    assert storage_dtype("int64") == np.int64
    # keys and values of 2 layers, 2 heads of 4 numbers, 5 positions
    assert cache_bytes(INFO, 5) == 2 * 2 * 2 * 4 * 5 * 2


def test_the_manifest_says_bfloat16_where_the_cache_is(made: Made) -> None:
    manifest = made.bundle.manifest
    graph = manifest.graphs[contract.DECODER_PORTABLE]
    dtypes = {spec.name: spec.dtype for spec in (*graph.inputs, *graph.outputs)}
    brain = {name for name, dtype in dtypes.items() if dtype == "bfloat16"}
    assert brain == {name for name in dtypes if name.startswith(("past_key_values.", "present."))}
    assert manifest.decoder.cache_dtype == "bfloat16"
    # What crosses every other border is float32, as in any bundle.
    assert dtypes[contract.INPUTS_EMBEDS] == dtypes[contract.LOGITS] == "float32"


@pytest.mark.parametrize("options", [{}, {"ratio": 1.0}, {"ratio": 0.1, "max_new_tokens": 40}])
def test_tensorrt_answers_as_the_twin(
    made: Made, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The double rounds as the twin does, so that every token must be the same."""
    device = Device()
    with installed(device, made.engines, monkeypatch):
        ours = Generator(made.bundle, "tensorrt")
        found = ours.generate(ask(**options))
        expected = Generator(made.twin, threads=1).generate(ask(**options))
        assert found.token_ids == expected.token_ids
        assert found.kept_indices == expected.kept_indices
        assert device.counts["launched"] > 0  # steps are recorded as in any precision


def test_the_cache_on_the_device_holds_rounded_keys(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    with installed(device, made.engines, monkeypatch):
        ours, theirs = Generator(made.bundle, "tensorrt"), Generator(made.twin, threads=1)
        ids = np.array([[5, 4, 6, 7]], np.int64)
        caches = []
        for generator in (ours, theirs):
            positions = generator.prompt(ids[0], ()).positions
            run = generator.decoder_run(16, positions)
            run.prefill(generator.embed(ids, ()))
            past = run.cache.past()[contract.past_name(0, "key")]
            caches.append(np.array(generator.backend.download(past)))
        got, wanted = caches
        assert (got.dtype, wanted.dtype) == (np.uint16, np.float32)
        np.testing.assert_array_equal(got.view(BRAIN).astype(np.float32), wanted)
        assert np.abs(wanted).max() > 0


def test_a_buffer_of_another_dtype_is_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with installed(Device(), made.engines, monkeypatch):
        generator = Generator(made.bundle, "tensorrt")
        session = generator.session(contract.DECODER_PORTABLE)
        name = contract.past_name(0, "key")
        info = made.bundle.manifest.decoder
        shape = (1, 0, info.kv_heads, info.head_dim)
        session.bind({name: View(generator.backend.allocate(8, "bfloat16"), shape)}, {})
        with pytest.raises(BackendError, match="is bfloat16, but a buffer of float16 is bound: convert it"):
            session.bind({name: View(generator.backend.allocate(8, "float16"), shape)}, {})


def test_a_later_answer_goes_on_behind_the_kept_cache(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept cache grows and is cut in its own bytes."""
    with installed(Device(), made.engines, monkeypatch):
        ours = Generator(made.bundle, "tensorrt", reuse=Reuse())
        first = ours.generate(ask(max_new_tokens=4))
        again = ours.generate(ask(max_new_tokens=300))
        assert again.token_ids[:4] == first.token_ids
        expected = Generator(made.twin, threads=1, reuse=Reuse()).generate(ask(max_new_tokens=300))
        # Rows of 32 bytes are kept in steps of 8, so that the last rows of the prompt are added up in another
        # chunk: bfloat16 has near-ties that this turns over, later than the first tokens.
        assert again.token_ids[:32] == expected.token_ids[:32]
        assert again.reused_tokens % 8 == 0 < again.reused_tokens


def test_onnxruntime_on_the_cpu_refuses_it(made: Made) -> None:
    with pytest.raises(
        BackendError,
        match=r"vision_encoder_fopru_bf16.onnx is in bfloat16, for which onnxruntime has no kernels: run it "
        r"with --backend tensorrt on an NVIDIA GPU, or build the bundle with --precision fp16 or fp32",
    ):
        Generator(made.bundle).generate(ask())
    with pytest.raises(BackendError, match=r"the decoder's KV cache is in bfloat16, for which onnxruntime"):
        Generator(made.bundle).decoder_run(8, None)  # type: ignore[arg-type]  # refused before it is read


def test_openvino_refuses_the_cache() -> None:
    backend = OvBackend("openvino", None, None, {})
    assert backend.kinds_for("float16") == backend.cache_kinds
    with pytest.raises(BackendError, match=r"the decoder's KV cache is in bfloat16, for which openvino has"):
        backend.kinds_for("bfloat16")


def test_a_broken_file_of_float16_is_not_blamed_on_bfloat16(tmp_path: Path) -> None:
    import onnxruntime

    path = tmp_path / "x_fp16.onnx"
    path.write_bytes(b"no graph")
    backend = OrtBackend(onnxruntime, BackendOptions())
    assert backend.kinds_for("float16") == backend.cache_kinds
    with pytest.raises(BackendError, match="onnxruntime cannot load"):
        backend.open(path)


def test_ort_cuda_binds_it_by_its_number_in_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (bfloat16[n] x) => (bfloat16[m] y) { y = Concat <axis = 0> (x, x) }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "g.onnx")
    ort_double.install(monkeypatch)
    backend = create_cuda(BackendOptions())
    session = backend.open(tmp_path / "g.onnx")
    x, y = View(backend.allocate(3, "bfloat16"), (3,)), View(backend.allocate(6, "bfloat16"), (6,))
    values = np.array([1.5, -2.0, 0.25], BRAIN)
    backend.write(x, values.view(np.uint16))
    session.bind({"x": x}, {"y": y}).run()
    np.testing.assert_array_equal(backend.download(y).view(BRAIN), np.tile(values, 2))
    assert backend.kinds_for("bfloat16")[0] == contract.SHARED
    cache = make_cache(backend, INFO, contract.APPEND, 8)
    assert {view.buffer.dtype for view in cache.past().values()} == {np.dtype(np.uint16)}
