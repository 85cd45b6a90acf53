"""ONNX Runtime's CUDA provider: options, addresses, copies, and every error in a sentence."""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import runtime.backend
from runtime import contract
from runtime.backend import BackendOptions, DeviceBackend, View, create_backend
from runtime.backends import ort_cuda
from runtime.backends.cudart import CudaCopies, HostCopies, load_cudart
from runtime.backends.ort_device import OrtDevice, OrtDeviceBackend, missing_library
from runtime.bundle import load_bundle
from runtime.device_report.measure import Plan, measure_backend
from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.request import Request, Turn
from runtime.reuse import NO_REUSE
from tests.ort_double import FakeCudart, FakeOrt, Heap, install
from tests.toy_bundle import WIDTH, ToyModel, toy_photo, write_toy_bundle

CPU = "CPUExecutionProvider"
MODEL = ToyModel()
FLOAT = np.float32


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy", MODEL)


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> FakeOrt:
    return install(monkeypatch)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"ort-cuda": "runtime.backends.ort_cuda", "ort-tensorrt": "runtime.backends.ort_tensorrt"}
    monkeypatch.setattr(runtime.backend, "_MODULES", runtime.backend._MODULES | names)


def graph(root: Path, name: str = contract.EMBED_TOKENS) -> Path:
    return root / contract.graph_file(name)


def on_cpu() -> OrtDeviceBackend:
    """The same code over the real package, with the CPU as its device."""
    device = OrtDevice("cpu", 0, ((CPU, {}),))
    return OrtDeviceBackend("ort-cpu", onnxruntime, device, HostCopies(), BackendOptions(1))


def test_options_of_the_cuda_provider(ort: FakeOrt, toy: Path) -> None:
    create_backend("ort-cuda", BackendOptions()).open(graph(toy))
    assert ort.sessions == [
        {
            "path": str(graph(toy)),
            "providers": [
                (
                    "CUDAExecutionProvider",
                    {
                        "device_id": "0",
                        "arena_extend_strategy": "kSameAsRequested",
                        "cudnn_conv_algo_search": "HEURISTIC",
                        "use_tf32": "0",
                    },
                )
            ],
        }
    ]


def test_a_bound_run_reads_and_writes_device_buffers(ort: FakeOrt, toy: Path) -> None:
    backend = create_backend("ort-cuda", BackendOptions())
    session = backend.open(graph(toy))
    ids = backend.upload(np.array([[5, 9, 77, 130]], np.int64))
    middle = View(ids.buffer, (1, 2), offset=1)
    out = backend.allocate(5 * WIDTH, "float32")
    after = View(out, (1, 2, WIDTH), offset=3 * WIDTH)
    before = dict(ort.heap.copied)
    binding = session.bind({contract.INPUT_IDS: middle}, {contract.INPUTS_EMBEDS: after})
    binding.run()
    assert ort.heap.copied == before  # nothing moved between host and device
    np.testing.assert_array_equal(backend.download(after)[0], MODEL.weights["embed"][[9, 77]])
    assert ort.heap.copied["dh"] == 2 * WIDTH * 4  # only what was asked for
    assert (backend.download(View(out, (3 * WIDTH,))) == 0).all()  # new buffers hold zeros, and this was kept


@pytest.mark.parametrize("tells", [True, False])
def test_what_is_read_on_the_host_is_read_anew(
    monkeypatch: pytest.MonkeyPatch, toy: Path, tells: bool
) -> None:
    install(monkeypatch, host_inputs=(contract.INPUT_IDS,), tells=tells)
    backend = create_backend("ort-cuda", BackendOptions())
    assert isinstance(backend, DeviceBackend)
    ids = backend.upload(np.array([[5]], np.int64))
    out = View(backend.allocate(WIDTH, "float32"), (1, 1, WIDTH))
    binding = backend.open(graph(toy)).bind({contract.INPUT_IDS: ids}, {contract.INPUTS_EMBEDS: out})
    for token in (9, 77):
        backend.write(ids, np.array([[token]], np.int64))
        binding.run()
        np.testing.assert_array_equal(backend.download(out)[0, 0], MODEL.weights["embed"][token])


@pytest.mark.parametrize(
    ("family", "ratio", "tells"),
    [("llava", 0.3, False), ("llava", 1.0, True), ("llava_next", 0.3, True), ("qwen2_5_vl", 0.3, True)],
)
def test_answers_equal_those_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, family: str, ratio: float, tells: bool
) -> None:
    shared = "toy_bundle_dir" if family == "llava" else "family_bundle"  # exporting one takes seconds
    made = request.getfixturevalue(shared)
    ort, bundle = install(monkeypatch, tells=tells), load_bundle(made if family == "llava" else made(family))
    asked = Request("what is it?", (toy_photo((40, 56)),), ratio=ratio, max_new_tokens=12, ignore_eos=True)
    expected = Generator(bundle, "onnxruntime", threads=1).generate(asked)
    generator = Generator(bundle, "ort-cuda", threads=1)
    stream = generator.stream(asked)
    deque(stream, maxlen=0)
    answer = stream.result
    assert answer.token_ids == expected.token_ids
    assert answer.kept_indices == expected.kept_indices
    assert answer.kv_bytes_allocated == answer.kv_bytes  # grown in place
    info, rows = generator.manifest.decoder, sum(answer.visual_tokens_after)
    # Up to the image's own rows, then into the prompt, and none of them to the host.
    assert ort.heap.copied["dd"] >= 2 * 4 * rows * info.hidden_size
    logits = 4 * info.vocab_size * 12
    units = [unit for image in stream.encoded for unit in image.plan.units if unit.prunable]
    beside = 8 * sum(map(len, answer.kept_indices)) + 4 * sum(unit.tokens for unit in units)
    assert ort.heap.copied["dh"] == logits + (beside if ratio < 1 else 0)
    again = generator.generate(asked)
    assert again.token_ids == expected.token_ids
    assert again.reused_images == 1


def test_parity_of_every_stage(monkeypatch: pytest.MonkeyPatch, toy_bundle_dir: Path) -> None:
    install(monkeypatch)
    plan = Plan((0.3,), 1, 1, 4, 20, 1)
    record = measure_backend(load_bundle(toy_bundle_dir), "ort-cuda", plan, lambda _: None)
    assert record.ok, record
    assert record.kept_agreement == 1.0
    assert record.loop is not None
    assert record.loop.changed_answers == 0
    # Who runs what, as far as the engine says.
    assert set(record.placement[contract.EMBED_TOKENS]) == {"CUDAExecutionProvider"}


def test_a_chat_and_a_longer_answer_move_the_cache(
    monkeypatch: pytest.MonkeyPatch, toy_bundle_dir: Path
) -> None:
    ort, bundle = install(monkeypatch), load_bundle(toy_bundle_dir)
    photo = toy_photo((40, 56))
    generators = [Generator(bundle, name, threads=1) for name in ("onnxruntime", "ort-cuda")]
    first = Request("what is it?", (photo,), max_new_tokens=6, ignore_eos=True)
    answers = [generator.generate(first) for generator in generators]
    assert answers[0].token_ids == answers[1].token_ids
    turn = Turn(first.prompt, first.images, answers[0].text)
    second = Request("and now?", history=(turn,), max_new_tokens=40, ignore_eos=True)
    later = [generator.generate(second) for generator in generators]
    assert later[0].token_ids == later[1].token_ids
    assert later[0].reused_tokens == later[1].reused_tokens > 0
    before = ort.heap.nbytes
    generators[1].forget()
    assert ort.heap.nbytes < before  # the cache is given back


def test_memory_of_many_requests(monkeypatch: pytest.MonkeyPatch, toy_bundle_dir: Path) -> None:
    ort, bundle = install(monkeypatch), load_bundle(toy_bundle_dir)
    generator = Generator(bundle, "ort-cuda", threads=1, reuse=NO_REUSE)
    held = []
    for ratio in (0.9, 0.1, 0.5, 1.0, 0.1, 0.9):
        generator.generate(Request("a?", (toy_photo((40, 56)),), ratio=ratio, max_new_tokens=3))
        held.append(ort.heap.nbytes)
    assert len(set(held)) == 1  # nothing is left behind


@pytest.mark.parametrize("real", [False, True])
def test_new_buffers_hold_zeros(ort: FakeOrt, real: bool) -> None:
    backend = on_cpu() if real else create_backend("ort-cuda", BackendOptions())
    for _ in range(8):  # the allocator gives used memory again
        view = View(backend.allocate(64, "float16"), (64,))
        assert (backend.download(view) == 0).all()
        backend.write(view, np.full(64, np.nan, np.float16))  # type: ignore[attr-defined]


@pytest.mark.parametrize("real", [False, True])
def test_copies_of_parts(ort: FakeOrt, real: bool) -> None:
    backend = on_cpu() if real else create_backend("ort-cuda", BackendOptions())
    assert isinstance(backend, OrtDeviceBackend)
    values = np.arange(24, dtype=FLOAT).reshape(2, 3, 4)
    view = backend.upload(values.transpose(2, 0, 1))  # not contiguous
    assert view.shape == (4, 2, 3)
    np.testing.assert_array_equal(backend.download(view), values.transpose(2, 0, 1))
    buffer = backend.allocate(12, "float16")
    backend.write(View(buffer, (12,)), np.zeros(12, np.float16))
    backend.write(View(buffer, (2, 2), offset=3), np.array([[1, 2], [3, 4]], np.float16))
    backend.copy(View(buffer, (3,), offset=9), View(buffer, (3,), offset=4))
    expected = [0, 0, 0, 1, 2, 3, 4, 0, 0, 2, 3, 4]
    assert backend.download(View(buffer, (12,))).tolist() == expected
    if not real:
        assert ort.heap.copied["dd"] == 3 * 2


def test_a_download_is_no_view(ort: FakeOrt) -> None:
    backend = create_backend("ort-cuda", BackendOptions())
    view = backend.upload(np.array([1, 2], FLOAT))
    backend.download(view)[:] = 9
    assert backend.download(view).tolist() == [1, 2]


def test_nothing_can_be_copied(ort: FakeOrt) -> None:
    backend = create_backend("ort-cuda", BackendOptions())
    assert isinstance(backend, OrtDeviceBackend)
    empty = backend.upload(np.empty((1, 0, 4), FLOAT))  # an empty past: bound, so it needs an address
    assert empty.buffer.address(empty) != 0
    backend.copy(empty, View(backend.allocate(0, "float32"), (0,)))
    assert backend.download(empty).shape == (1, 0, 4)
    assert ort.heap.copied == {}


@pytest.mark.parametrize("shape", [(1, 2), (2, 2)])
def test_an_array_of_another_size_or_dtype(ort: FakeOrt, shape: tuple[int, int]) -> None:
    backend = create_backend("ort-cuda", BackendOptions())
    assert isinstance(backend, OrtDeviceBackend)
    view = View(backend.allocate(4, "float32"), shape)
    array = np.zeros((2, 2), FLOAT if shape == (1, 2) else np.float64)
    kind = array.dtype.name
    with pytest.raises(
        BackendError, match=rf"cannot write 4 values of {kind} into a view of \d of float32: "
    ):
        backend.write(view, array)
    with pytest.raises(BackendError, match=rf"cannot copy 4 values of {kind} into a view of \d of float32: "):
        backend.copy(view, backend.upload(array))


@pytest.mark.parametrize("offset", [-1, 3])
def test_a_view_past_the_end(ort: FakeOrt, toy: Path, offset: int) -> None:
    backend = create_backend("ort-cuda", BackendOptions())
    view = View(backend.allocate(4, "int64"), (1, 2), offset)
    message = rf"a view of 2 values from {offset} on does not fit its buffer of 4"
    for use in (
        lambda: backend.download(view),
        lambda: backend.open(graph(toy)).bind({contract.INPUT_IDS: view}, {}),
    ):
        with pytest.raises(BackendError, match=message):
            use()


def test_buffers_are_freed_with_their_last_view(ort: FakeOrt, toy: Path) -> None:
    backend = create_backend("ort-cuda", BackendOptions())
    session = backend.open(graph(toy))
    view = backend.upload(np.array([[9]], np.int64))
    binding = session.bind({contract.INPUT_IDS: view}, {})
    del view
    assert len(ort.heap.values) == 1  # the binding holds its address
    del binding
    assert len(ort.heap.values) == 0


def test_errors_of_a_run(ort: FakeOrt, toy: Path) -> None:
    backend = create_backend("ort-cuda", BackendOptions())
    session = backend.open(graph(toy))
    with pytest.raises(BackendError, match=r"ort-cuda failed in embed_tokens: .*input_ids"):
        session.run({})
    with pytest.raises(BackendError, match="ort-cuda cannot bind nonsense of embed_tokens: "):
        session.bind({"nonsense": backend.upload(np.zeros(1, np.int64))}, {})
    ids, small = backend.upload(np.zeros((1, 2), np.int64)), backend.allocate(WIDTH, "float32")
    outputs = {contract.INPUTS_EMBEDS: View(small, (1, 1, WIDTH))}
    binding = session.bind({contract.INPUT_IDS: ids}, outputs)
    with pytest.raises(BackendError, match="ort-cuda failed in embed_tokens: "):
        binding.run()


def test_a_graph_that_cannot_be_read(ort: FakeOrt, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"ort-cuda cannot load .*broken.onnx: "):
        create_backend("ort-cuda", BackendOptions()).open(tmp_path / "broken.onnx")


@pytest.mark.parametrize("backend", ["ort-cuda", "ort-tensorrt"])
def test_a_package_without_the_provider(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    install(monkeypatch, offered=("AzureExecutionProvider", CPU))
    message = (
        rf"{backend} needs \w+ExecutionProvider, but this onnxruntime 1.31.1 offers AzureExecutionProvider, "
        r"CPUExecutionProvider: pip uninstall -y onnxruntime && pip install --force-reinstall "
        r"'fopru-edge\[gpu\]'"
    )
    with pytest.raises(BackendError, match=message):
        create_backend(backend, BackendOptions())


@pytest.mark.parametrize("backend", ["ort-cuda", "ort-tensorrt"])
def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = r"the package onnxruntime-gpu, .* pip install 'fopru-edge\[gpu\]'"
    with pytest.raises(BackendError, match=message):
        create_backend(backend, BackendOptions())


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "onnxruntime" / "__init__.py"
    ort = FakeOrt(Heap(), __file__=str(package))
    monkeypatch.setattr(ort_cuda, "require", lambda *_, **__: ort)
    message = (
        r"ort-cuda needs CUDAExecutionProvider, which cannot start \(.*cannot open shared object file.*\): "
        r"install onnxruntime-gpu and the CUDA it was built for with `pip install 'fopru-edge\[gpu\]'"
    )
    with pytest.raises(BackendError, match=message):
        create_backend("ort-cuda", BackendOptions())


def test_the_driver_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setattr(
        ort_cuda, "missing_library", lambda *_: "libcuda.so.1: cannot open shared object file"
    )
    message = r"ort-cuda needs an NVIDIA GPU with its driver \(libcuda.so.1: .*\): use another backend"
    with pytest.raises(BackendError, match=message):
        create_backend("ort-cuda", BackendOptions())


def test_libraries_of_pip_are_loaded_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ort = install(monkeypatch)
    loaded = []

    def preload_dlls() -> None:
        print("Failed to load libcudnn.so.9")
        loaded.append(True)

    monkeypatch.setattr(ort, "preload_dlls", preload_dlls, raising=False)
    create_backend("ort-cuda", BackendOptions())
    assert loaded == [True]
    assert capsys.readouterr().out == ""


def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ort = install(monkeypatch)
    cudart = FakeCudart(ort.heap)
    cudart.fails = 100
    monkeypatch.setattr(ort_cuda, "load_cudart", lambda: cudart)
    message = (
        r"ort-cuda needs an NVIDIA GPU with its driver \(cudaMemGetInfo failed: no CUDA-capable device is "
        r"detected\): use another backend"
    )
    with pytest.raises(BackendError, match=message):
        create_backend("ort-cuda", BackendOptions())


def test_a_provider_that_does_not_start_is_no_silent_cpu(monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    install(monkeypatch, start=())
    backend = create_backend("ort-cuda", BackendOptions())
    message = r"ort-cuda needs CUDAExecutionProvider, which did not start \(its libraries load, so "
    with pytest.raises(BackendError, match=message):
        backend.open(graph(toy))


def test_the_real_package_does_not_fall_back_either(toy: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    message = r"ort-cuda needs CUDAExecutionProvider, but this onnxruntime .* offers"
    with pytest.raises(BackendError, match=message):
        create_backend("ort-cuda", BackendOptions())


def test_work_left_to_the_cpu_is_named(monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    install(monkeypatch, left=("MatMul", "Shape", "Gather"))
    backend = create_backend("ort-cuda", BackendOptions())
    message = (
        r"ort-cuda would leave \d MatMul of vision_encoder_fopru to the CPU, for which CUDAExecutionProvider "
        r"has no kernel in this precision: build the bundle with --precision fp16"
    )
    with pytest.raises(BackendError, match=message):
        backend.open(graph(toy, contract.VISION_ENCODER_FOPRU))
    install(monkeypatch, left=("Shape",))  # shapes are computed there on purpose
    opened = create_backend("ort-cuda", BackendOptions()).open(graph(toy, contract.VISION_ENCODER_FOPRU))
    assert "MatMul" in opened.placement["CUDAExecutionProvider"]  # type: ignore[attr-defined]


def test_a_provider_that_takes_nothing(monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    install(monkeypatch, left=("Gather",))
    message = (
        r"ort-cuda opened embed_tokens, but CUDAExecutionProvider took none of its nodes "
        r"\(CPUExecutionProvider has 1\): use another backend"
    )
    with pytest.raises(BackendError, match=message):
        create_backend("ort-cuda", BackendOptions()).open(graph(toy))


def test_an_older_onnxruntime_does_not_say_who_runs_what(monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    install(monkeypatch, left=("Gather",), tells=False)
    assert create_backend("ort-cuda", BackendOptions()).open(graph(toy)).placement is None  # type: ignore[attr-defined]


def test_the_cache_follows_what_cuda_has_kernels_for() -> None:
    backend = on_cpu()
    assert backend.kinds_for("float32")[0] == contract.APPEND
    assert backend.kinds_for("float16") == (contract.SHARED, contract.APPEND, contract.CONCAT)
    assert set(backend.kinds_for("float32")) == set(backend.cache_kinds)


def test_memory_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    ort = install(monkeypatch)

    def refuse(*_: Any) -> None:
        raise RuntimeError("Available memory of 12 is smaller than requested bytes of 4096")

    backend = create_backend("ort-cuda", BackendOptions())
    values = SimpleNamespace(ortvalue_from_shape_and_type=refuse)
    monkeypatch.setattr(FakeOrt, "OrtValue", values)
    assert ort.OrtValue is values
    message = r"ort-cuda cannot allocate 4096 bytes on the device \(Available .*\): free memory there"
    with pytest.raises(BackendError, match=message):
        backend.allocate(1024, "float32")


def test_the_memory_of_the_device() -> None:
    heap = Heap()
    copies = CudaCopies(FakeCudart(heap, total=1000))
    assert copies.memory() == (1000, 1000)


def test_a_copy_is_waited_for() -> None:
    heap = Heap()
    cudart = FakeCudart(heap)
    ort = FakeOrt(heap)
    value = ort.OrtValue.ortvalue_from_shape_and_type((4,), np.uint8, "cuda", 0)
    source = np.arange(4, dtype=np.uint8)
    CudaCopies(cudart).copy(value.data_ptr(), source.ctypes.data, 4)
    assert value.memory.tolist() == [0, 1, 2, 3]
    assert not cudart.unfinished


def test_a_copy_that_fails() -> None:
    heap = Heap()
    cudart = FakeCudart(heap)
    cudart.fails = 700
    value = FakeOrt(heap).OrtValue.ortvalue_from_shape_and_type((4,), np.uint8, "cuda", 0)
    with pytest.raises(BackendError, match="cudaMemcpy failed: unknown error"):
        CudaCopies(cudart).copy(value.data_ptr(), np.zeros(4, np.uint8).ctypes.data, 4)


def test_the_first_cuda_runtime_that_loads() -> None:
    asked = []

    def load(name: str) -> str:
        asked.append(name)
        if name != "libcudart.so.12":
            raise OSError
        return "loaded"

    assert load_cudart(load) == "loaded"
    assert asked == ["libcudart.so.13", "libcudart.so.12"]


def test_no_cuda_runtime() -> None:
    def load(name: str) -> None:
        raise OSError(name)

    with pytest.raises(BackendError, match=r"none of libcudart.so.13, .* can be loaded: install the CUDA"):
        load_cudart(load)


def test_a_real_libcudart_without_a_driver() -> None:
    try:
        cudart = load_cudart()
        ctypes.CDLL("libcuda.so.1")
    except BackendError:
        pytest.skip("this machine has no CUDA runtime")
    except OSError:
        with pytest.raises(BackendError, match=r"cudaMemGetInfo failed: .*driver"):
            CudaCopies(cudart).memory()
        return
    pytest.skip("this machine has a driver")


def test_providers_of_the_package_at_hand() -> None:
    assert missing_library(onnxruntime, "NoSuchExecutionProvider") is not None
    assert find_spec("onnxruntime") is not None
