"""Parts of the TensorRT backend on the test double: memory, copies, bindings, sentences of errors."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from runtime import contract
from runtime.backend import CapturingBackend, View
from runtime.backends.tensorrt import TrtBackend
from runtime.bundle import load_bundle
from runtime.errors import BackendError
from runtime.rows import DeviceRows, DeviceSpace, HostSpace, runs_of
from runtime.tensorrt.cuda import Cuda, load_cudart
from tests.conftest import Maker
from tests.tensorrt_double import Device, cudart, trt


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """y [n, 2] = x [n, 2] + x, and the first num_keep of its rows; x of 1..4 rows, or of 5..8."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Slice", ["y", "zero", contract.NUM_KEEP], ["first"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2]),
        helper.make_tensor_value_info(contract.NUM_KEEP, TensorProto.INT64, [1]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]),
        helper.make_tensor_value_info("first", TensorProto.FLOAT, ["kept", 2]),
    ]
    zero = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
    made = helper.make_graph(nodes, "g", inputs, outputs, [zero])
    path = tmp_path / "sum.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    profiles = [{"x": [[least, 2], [least, 2], [most, 2]]} for least, most in ((1, 4), (5, 8))]
    values = {contract.NUM_KEEP: [1, 3]}
    record = {"onnx": str(path), "profiles": profiles, "values": values, "scratch": 1000}
    (tmp_path / "sum.engine").write_text(json.dumps(record))
    return path


@pytest.fixture
def backend(device: Device) -> TrtBackend:
    return TrtBackend(trt(device), cudart(device), lambda graph: graph.with_suffix(".engine"))


def feeds(rows: int, keep: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.arange(2 * rows, dtype=np.float32).reshape(rows, 2), contract.NUM_KEEP: np.array([keep])}


# Sessions


def test_a_session_takes_host_arrays(backend: TrtBackend, graph: Path, device: Device) -> None:
    session = backend.open(graph)
    assert session.inputs == {"x": (None, 2), contract.NUM_KEEP: (1,)}
    for rows, keep in ((2, 1), (7, 3), (3, 2), (7, 1)):
        given = feeds(rows, keep)
        found = session.run(given)
        np.testing.assert_array_equal(found["y"], 2 * given["x"])
        np.testing.assert_array_equal(found["first"], 2 * given["x"][:keep])
    assert device.counts["contexts"] == 2  # one for each profile


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (feeds(9), r"sum was not built for x of shape \[9, 2\], only for \[1, 2\]\.\.\[4, 2\] or \[5, 2\]"),
        (
            feeds(2, 4),
            r"engine of sum was not built for num_keep \[4\], only for \[1\]\.\.\[3\]: ask for less with",
        ),
        ({"x": feeds(1)["x"]}, "tensorrt cannot run sum without num_keep"),
        ({**feeds(1), "z": np.zeros(1)}, "sum has no tensor z, only x, num_keep, y, first"),
    ],
)
def test_what_an_engine_cannot_take(
    backend: TrtBackend, graph: Path, given: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        backend.open(graph).run(given)


def test_what_cannot_be_bound(backend: TrtBackend, graph: Path) -> None:
    session = backend.open(graph)
    inputs = {name: backend.upload(array) for name, array in feeds(2).items()}
    with pytest.raises(BackendError, match="y of sum is float32, but a buffer of int64 is bound: convert it"):
        session.bind(inputs, {"y": View(backend.allocate(4, "int64"), (2, 2))})
    with pytest.raises(BackendError, match="a view of 4 values from 1 on does not fit its buffer of 4"):
        session.bind(inputs, {"y": View(backend.allocate(4, "float32"), (2, 2), 1)})
    with pytest.raises(BackendError, match="tensorrt cannot run sum without y, first: bind them"):
        session.bind(inputs, {}).run()
    outputs = {name: View(backend.allocate(4, "float32"), (2, 2)) for name in ("y", "first")}
    with pytest.raises(BackendError, match=r"first comes out as \[1, 2\], but a view of \[2, 2\] is bound"):
        session.bind(inputs, outputs).run()
    lost = View(backend.allocate(1, "int64"), (1,))
    with pytest.raises(BackendError, match="num_keep of sum sizes other tensors and is read on the host"):
        session.bind({**inputs, contract.NUM_KEEP: lost}, outputs).run()
    with pytest.raises(
        BackendError, match="y of sum begins 8 bytes behind a multiple of 256, where TensorRT"
    ):
        session.bind(inputs, {**outputs, "y": View(backend.allocate(9, "float32"), (2, 2), 2)}).run()


def test_a_profile_that_is_refused(backend: TrtBackend, graph: Path) -> None:
    session = backend.open(graph)
    session.engine.engine.num_optimization_profiles = 0  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match="tensorrt cannot take profile 0 of sum: TensorRT gave no reason"):
        session.run(feeds(2))


def test_engines_that_cannot_be_opened(backend: TrtBackend, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"the engine .*none.engine cannot be read .* build it again with"):
        backend.open(tmp_path / "none.onnx")
    (tmp_path / "bad.engine").write_bytes(b"garbage")
    with pytest.raises(BackendError, match=r"cannot load the engine .*bad.engine: Serialization assertion"):
        backend.open(tmp_path / "bad.onnx")


def test_a_recorded_run_sees_new_values(backend: TrtBackend, graph: Path, device: Device) -> None:
    session, given = backend.open(graph), feeds(2, 2)
    inputs = {name: backend.upload(array) for name, array in given.items()}
    outputs = {name: View(backend.allocate(4, "float32"), (2, 2)) for name in ("y", "first")}
    run = backend.capture([session.bind(inputs, outputs)])
    backend.write(inputs["x"], given["x"] + 10)
    run()
    np.testing.assert_array_equal(backend.download(outputs["y"]), 2 * (given["x"] + 10))
    assert backend.capture([session.bind(inputs, outputs)]) is not run
    assert device.counts["captured"] == 1  # found by its addresses
    session.run(feeds(4))
    assert device.counts["launched"] == 1


# Memory


def test_memory_is_used_again_and_freed_in_the_end(device: Device) -> None:
    backend = TrtBackend(trt(device), cudart(device), Path)
    first = backend.allocate(1000, "float32")
    address = first.address
    del first
    again = backend.allocate(900, "float32")
    assert (again.address, device.counts["malloc"]) == (address, 1)
    np.testing.assert_array_equal(backend.download(View(again, (900,))), np.zeros(900, np.float32))
    small = backend.allocate(100, "float32")
    assert small.address != address
    del again, small, backend
    gc.collect()
    assert (device.used, device.pinned) == (0, {})


def test_idle_memory_makes_way(backend: TrtBackend, device: Device) -> None:
    device.total = 10 << 20
    idle = backend.allocate(8 << 20, "int8")
    with pytest.raises(BackendError, match="2 of 10 MiB free, but 6 MiB are needed in one piece: lower the"):
        backend.allocate(6 << 20, "int8")
    del idle
    assert backend.allocate(6 << 20, "int8").size == 6 << 20


def test_idle_memory_is_a_quarter_of_what_was_in_use_at_most(backend: TrtBackend, device: Device) -> None:
    # A KV cache of another size for every request: without a limit, one of each would be held.
    for size in (300, 60, 180, 230, 90, 140, 300, 220):
        backend.allocate(size << 20, "int8")
        assert device.used <= 375 << 20
    kept = backend.allocate(220 << 20, "int8")
    counted = device.counts["malloc"]
    del kept
    backend.allocate(220 << 20, "int8")
    assert device.counts["malloc"] == counted


def test_no_error_is_left_behind_by_memory_that_was_short(backend: TrtBackend, device: Device) -> None:
    with pytest.raises(BackendError, match="are needed in one piece"):
        backend.allocate(2 << 30, "int8")
    assert device.last_error == 0


def test_copies_and_what_they_refuse(backend: TrtBackend) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    source = backend.upload(array)
    target = View(backend.allocate(20, "float32"), (3, 4), 2)
    backend.copy(target, source)
    np.testing.assert_array_equal(backend.download(target), array)
    # Rows of 2 out of rows of 4, into rows of 5.
    spread = backend.allocate(15, "float32")
    backend.copy_rows(View(spread, (3, 2), 1), View(source.buffer, (3, 2), 2), (5, 4))
    expected = np.zeros((3, 5), np.float32)
    expected[:, 1:3] = array[:, 2:]
    np.testing.assert_array_equal(backend.download(View(spread, (3, 5))), expected)
    with pytest.raises(BackendError, match="cannot copy 12 values of float32 into a view of 2 of float32"):
        backend.write(View(spread, (2,)), array)
    with pytest.raises(BackendError, match="of int64 into a view of 12 of float32: give as many of the same"):
        backend.write(target, array.astype(np.int64))
    with pytest.raises(BackendError, match="does not fit its buffer of 15"):
        backend.copy_rows(View(spread, (3, 2), 5), View(source.buffer, (3, 2)), (5, 4))


def test_a_value_on_the_host_follows_what_is_written(backend: TrtBackend, graph: Path) -> None:
    session, given = backend.open(graph), feeds(3, 1)
    inputs = {name: backend.upload(array) for name, array in given.items()}
    backend.write(inputs[contract.NUM_KEEP], np.array([2]))
    outputs = {name: View(backend.allocate(2 * n, "float32"), (n, 2)) for name, n in (("y", 3), ("first", 2))}
    session.bind(inputs, outputs).run()
    np.testing.assert_array_equal(backend.download(outputs["first"]), 2 * given["x"][:2])


def test_an_illegal_access_is_a_sentence(backend: TrtBackend, device: Device) -> None:
    buffer = backend.allocate(4, "float32")
    device.blocks.clear()
    with pytest.raises(BackendError, match=r"CUDA failed in cuda\w+: an illegal .* \(error 700\)"):
        backend.synchronize()
    assert buffer.size == 4


def test_it_can_capture(backend: TrtBackend) -> None:
    assert isinstance(backend, CapturingBackend)


# Packages


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=r"cuda-python, which is not installed: pip .*\[tensorrt\]"):
        load_cudart()


def test_the_older_place_of_the_bindings(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    module = cudart(device)
    for name, found in (("cuda", object()), ("cuda.bindings", None), ("cuda.cudart", module)):
        monkeypatch.setitem(sys.modules, name, found)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert load_cudart() is module


def test_no_driver_is_a_sentence() -> None:
    class NoDriver:
        """CUDA without a driver, as cuda-python 13.5 answers."""

        def __getattr__(self, name: str) -> Any:
            if name == "cudaGetErrorString":
                return lambda _: (0, b"CUDA driver version is insufficient for CUDA runtime version")
            return lambda *_: (35, None)

    with pytest.raises(
        BackendError,
        match=r"an NVIDIA GPU with its driver \(CUDA failed in cudaStreamCreateWithFlags: CUDA driver .*"
        r" \(error 35\)\): use another backend",
    ):
        Cuda(NoDriver())


def test_no_libcuda_is_a_sentence() -> None:
    class NoLibrary:
        """The bindings where there is no driver at all."""

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("Failed to dlopen libcuda.so.1")

    with pytest.raises(BackendError, match=r"driver \(Failed to dlopen libcuda.so.1\): use another backend"):
        Cuda(NoLibrary())


# Rows


@pytest.mark.parametrize(
    ("numbers", "runs"),
    [
        ([], []),
        ([4], [(0, 1)]),
        ([1, 2, 3], [(0, 3)]),
        ([1, 3, 4, 4, 0], [(0, 1), (1, 3), (3, 4), (4, 5)]),
    ],
)
def test_runs_of_neighbours(numbers: list[int], runs: list[tuple[int, int]]) -> None:
    assert list(runs_of(np.array(numbers, np.int64))) == runs


def test_rows_are_gathered_as_numpy_does(backend: TrtBackend, device: Device) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.random((rows, 3), np.float32) for rows in (5, 0, 4, 1)]
    indices = [np.array([0, 1, 2, 4]), None, np.array([3, 1]), None]
    source = np.array([0, 1, 2, -1, 3, 4, 5, -1])
    host = HostSpace().gather(list(zip(arrays, indices, strict=True)), source, bytes)
    space = DeviceSpace(backend)
    parts = [(space.rows(array), index) for array, index in zip(arrays, indices, strict=True)]
    before = device.counts["copy"]
    made = space.gather(parts, source, lambda: b"key")
    np.testing.assert_array_equal(np.asarray(made), host)
    assert device.counts["copy"] - before == 6  # rows 0..2 in one
    assert (len(made), made.shape, made.nbytes, made.digest) == (8, (8, 3), 96, b"key")


def test_slices_are_those_of_numpy(backend: TrtBackend) -> None:
    array = np.arange(24, dtype=np.float32).reshape(1, 6, 4)
    rows = DeviceRows(backend, backend.upload(array))
    np.testing.assert_array_equal(np.asarray(rows[:, 2:5]), array[:, 2:5])
    np.testing.assert_array_equal(np.asarray(rows[0]), array[0])
    np.testing.assert_array_equal(np.asarray(rows[0][1:]), array[0][1:])
    assert np.asarray(rows, np.float64).dtype == np.float64
    with pytest.raises(IndexError, match=r"of \[6, 4\] is not contiguous: cut its first long axis only"):
        rows[0][:, 1:3]


# The padded past of a recorded step, in ONNX Runtime itself


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_masked_rows_of_the_past_change_no_logit(family_bundle: Maker, family: str) -> None:
    bundle = load_bundle(family_bundle(family))
    info, rng, length, block = bundle.manifest.decoder, np.random.default_rng(0), 37, 256
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle.graph(contract.DECODER_PORTABLE), options)
    shape = (1, length, info.kv_heads, info.head_dim)
    names = [contract.past_name(n, part) for n in range(info.layers) for part in ("key", "value")]
    past = {name: rng.standard_normal(shape, np.float32) for name in names}
    step = {
        contract.INPUTS_EMBEDS: rng.standard_normal((1, 1, info.hidden_size), np.float32),
        contract.POSITION_IDS: np.full((1, 1) if info.position_axes == 1 else (3, 1, 1), length),
        contract.NUM_LOGITS_TO_KEEP: np.array(1),
    }
    mask = np.ones((1, length + 1), np.int64)
    expected = session.run(None, {**step, **past, contract.ATTENTION_MASK: mask})
    longer = np.zeros((1, block + 1), np.int64)
    longer[0, :length] = longer[0, block] = 1
    for filling in (0.0, 1e3):
        rest = np.full((1, block - length, *shape[2:]), filling, np.float32)
        padded = {name: np.concatenate([rows, rest], axis=1) for name, rows in past.items()}
        found = session.run(None, {**step, **padded, contract.ATTENTION_MASK: longer})
        # float32 sums of 257 weights, 219 of them zero, in another order.
        limit = 1e-6 * float(np.abs(expected[0]).max())
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=limit)
        for own, other in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_allclose(own, other, rtol=0, atol=1e-5)  # of values around 1, as above
