"""Ranges of activations: what is seen, how it becomes one number, and that cutting a run changes no bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from calib.errors import DataError, OptionError, RunError, StoreError
from calib.ranges import Collector, Keep, Method, ObservingSession, collect_ranges, methods, parse_method
from calib.ranges import collect as collecting
from runtime.errors import BackendError, ImageError

Array = npt.NDArray[Any]
METHODS = (Method(), Method("percentile", 99.0), Method("entropy"))


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("minmax", Method("minmax")),
        ("percentile", Method("percentile", 99.99)),
        ("percentile:99.9", Method("percentile", 99.9)),
        ("percentile:99.99999", Method("percentile", 99.99999)),
        ("entropy", Method("entropy")),
    ],
)
def test_methods_as_on_the_command_line(text: str, method: Method) -> None:
    assert parse_method(text) == method
    assert parse_method(method.text()) == method


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max", "ranges is 'max', expected one of minmax, percentile, entropy, as in percentile:99.99"),
        ("", "ranges is '', expected one of minmax"),
        ("entropy:3", "ranges is 'entropy:3', but only percentile takes a number: as in percentile:99.99"),
        ("percentile:x", "the percentile of ranges is 'x', expected a number, as in percentile:99.99"),
        ("percentile:50", "the percentile of ranges is 50.0, expected 90 to 100, as in percentile:99.99"),
        ("percentile:nan", "the percentile of ranges is nan, expected 90 to 100"),
    ],
)
def test_methods_that_do_not_exist(text: str, message: str) -> None:
    with pytest.raises(OptionError) as error:
        parse_method(text)
    assert str(error.value).startswith(message)


def values(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_minmax_is_the_greatest_magnitude_of_all_updates() -> None:
    collector = Collector(Method())
    collector.update({"a": np.array([[1, -3]], np.float32), "b": np.zeros(4, np.float32)})
    collector.update({"a": np.array([2], np.float32), "empty": np.zeros((0, 3), np.float32)})
    assert collector.amax() == {"a": 3.0}  # what was 0 throughout has no scale


def test_a_percentile_cuts_the_tail() -> None:
    data = np.arange(1, 10_001, dtype=np.float32)
    collector = Collector(Method("percentile", 99.0))
    collector.update({"a": data})
    # 99 % of the magnitudes lie at or below 9,900; a bin is 10,000 / 2,048 wide.
    assert collector.amax()["a"] == pytest.approx(9900, abs=10_000 / 2048)


def test_entropy_cuts_a_few_outliers_and_nothing_else() -> None:
    data = np.concatenate([values(1, 100_000), np.array([80.0, -80.0], np.float32)])
    collector = Collector(Method("entropy"))
    collector.update({"a": data})
    # Of 100,000 normal numbers the greatest is about 4.4; the two outliers would cost 4 of 8 bits.
    assert 2.0 < collector.amax()["a"] < 20.0


def test_a_tensor_that_is_almost_everywhere_zero_keeps_a_range() -> None:
    data = np.zeros(100_000, np.float32)
    data[7] = 5.0
    for method in METHODS:
        collector = Collector(method)
        collector.update({"a": data})
        assert 0 < collector.amax()["a"] <= 5.0


@pytest.mark.parametrize("method", METHODS[1:], ids=lambda method: method.name)
def test_growing_values_do_not_make_endless_bins(monkeypatch: pytest.MonkeyPatch, method: Method) -> None:
    monkeypatch.setattr(methods, "_BINS", 128)
    collector, everything = Collector(method), []
    for step in range(12):
        everything.append(values(step, 4000) * 1.7**step)
        collector.update({"a": everything[-1]})
    counts, edges = collector._histograms.histogram_dict["a"][:2]
    assert len(counts) <= 256
    assert len(edges) == len(counts) + 1
    # The greatest value of an update may round beyond the last edge in float32.
    assert 12 * 4000 - 12 <= counts.sum() <= 12 * 4000
    width = np.diff(edges)
    np.testing.assert_allclose(width, width[0], rtol=1e-3)  # float32 edges
    if method.name == "entropy":
        assert edges[len(counts) // 2] == pytest.approx(0, abs=1e-3 * float(width[0]))
    else:
        wanted = np.percentile(np.abs(np.concatenate(everything)), 99.0)
        # Values are counted in bins of their time, up to a bin of now off.
        assert collector.amax()["a"] == pytest.approx(wanted, abs=2 * float(width[0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(bad: float) -> None:
    with pytest.raises(RunError, match=r"the activation a is not finite on this sample: check the bundle"):
        Collector(Method()).update({"a": np.array([1.0, bad], np.float32)})


def observe(number: int, collector: Collector) -> None:
    """A tensor that grows from sample to sample, one that does not, and samples that cannot be read."""
    if number % 4 == 3:
        raise ImageError("no picture")
    collector.update({"grows": values(number, 500) * (number + 1), "steady": values(number + 50, 3, 70)})


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_run_that_was_cut_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    monkeypatch.setattr(methods, "_BINS", 256)  # the search for the least entropy is quadratic in them
    samples = range(10)
    whole = collect_ranges(samples, observe, method, Keep(tmp_path / "whole.npz", "k"))
    assert (whole.used, whole.failed, whole.found) == (8, (3, 7), 0)
    monkeypatch.setattr(collecting, "_SAVE_SECONDS", 0.0)
    place = Keep(tmp_path / "cut.npz", "k")
    for stop in (2, 5, 8):  # three times, each at another place

        def cut(number: int, collector: Collector, stop: int = stop) -> None:
            if number == stop:
                raise KeyboardInterrupt
            observe(number, collector)

        with pytest.raises(KeyboardInterrupt):
            collect_ranges(samples, cut, method, place)
    again = collect_ranges(samples, observe, method, place)
    assert again.found == 8
    assert again.amax == whole.amax
    assert again.failed == whole.failed


def refuse(_number: int, _collector: Collector) -> None:
    raise AssertionError("nothing is left to look at")


def test_the_same_data_again_is_there_already(tmp_path: Path) -> None:
    place = Keep(tmp_path / "deeper" / "r.npz", "k")
    first = collect_ranges(range(5), observe, Method(), place)
    again = collect_ranges(range(5), refuse, Method(), place)
    assert (again.amax, again.found) == (first.amax, 5)
    assert [path.name for path in place.file.parent.iterdir()] == ["r.npz"]


def test_another_key_begins_anew(tmp_path: Path) -> None:
    file, calls = tmp_path / "r.npz", []
    collect_ranges(range(3), observe, Method(), Keep(file, "k"))
    collect_ranges(range(3), lambda number, _: calls.append(number), Method(), Keep(file, "other"))
    assert calls == [0, 1, 2]


def test_progress_counts_samples(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    collect_ranges(
        range(3), observe, Method(), Keep(tmp_path / "r.npz", "k"), lambda *at: seen.append((at[0], at[1]))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_no_sample_at_all(tmp_path: Path) -> None:
    def fail(_number: int, _collector: Collector) -> None:
        raise ImageError("no picture")

    with pytest.raises(DataError, match=r"none of 2 samples could be run to find ranges .*: check --data"):
        collect_ranges(range(2), fail, Method(), Keep(tmp_path / "r.npz", "k"))


def test_damaged_files(tmp_path: Path) -> None:
    file = tmp_path / "r.npz"
    collect_ranges(range(3), observe, Method(), Keep(file, "k"))
    whole = file.read_bytes()
    for damaged in (b"", b"hello", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"the ranges in .*r\.npz are damaged .*run with --fresh"):
            collect_ranges(range(3), observe, Method(), Keep(file, "k"))
    with np.load(_rewritten(file, whole)) as arrays:
        rest = {name: arrays[name] for name in arrays.files if name != "greatest"}
    np.savez(file, **rest)
    with pytest.raises(StoreError, match=r"the ranges that were kept are damaged .*: run with --fresh"):
        collect_ranges(range(3), observe, Method(), Keep(file, "k"))


def _rewritten(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def two_products(folder: Path) -> Path:
    """x [2, 3] @ w1 -> a -> relu -> b @ w2 -> y, weights in a file of their own."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(3, 90)), "w2": rng.normal(size=(90, 2))}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w2"], ["y"]),
        ],
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir()
    onnx.save(
        model, folder / "toy.onnx", save_as_external_data=True, location="toy.onnx_data", size_threshold=0
    )
    return folder / "toy.onnx"


def watch(graph: Path, tensors: tuple[str, ...], feeds: Mapping[str, Array]) -> tuple[Any, dict[str, Array]]:
    seen: dict[str, Array] = {}
    session = ObservingSession(graph, tensors, seen.update, threads=1)
    return session.run(feeds), seen


@pytest.mark.parametrize("at_once", [1, 48])
def test_observed_values_are_those_of_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("calib.ranges.observing._AT_ONCE", at_once)
    graph, x = two_products(tmp_path / "model"), values(3, 2, 3)
    outputs, seen = watch(graph, ("x", "a", "b", "y"), {"x": x})
    plain = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    wanted = plain.run(None, {"x": x})[0]
    assert set(outputs) == {"y"}
    # Fused or not, the sums of these few products are the same.
    np.testing.assert_allclose(outputs["y"], wanted, rtol=1e-6, atol=1e-6)
    assert set(seen) == {"x", "a", "b", "y"}
    np.testing.assert_array_equal(seen["x"], x)
    np.testing.assert_array_equal(seen["b"], np.maximum(seen["a"], 0))


def test_the_session_looks_like_the_graph(tmp_path: Path) -> None:
    session = ObservingSession(two_products(tmp_path / "model"), ("a",), lambda _: None)
    assert dict(session.inputs) == {"x": (None, 3)}
    assert dict(session.outputs) == {"y": (None, 2)}
    with pytest.raises(RunError, match="activations are observed in plain runs only: call run"):
        session.bind({}, {})


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"toy\.onnx has no tensor zebra: run with --fresh to plan it anew"):
        ObservingSession(two_products(tmp_path / "model"), ("zebra",), lambda _: None)


def test_a_graph_without_its_weights(tmp_path: Path) -> None:
    graph = two_products(tmp_path / "model")
    graph.with_name("toy.onnx_data").unlink()
    with pytest.raises(BackendError, match=r"ONNX Runtime cannot open .*toy\.onnx with its activations"):
        ObservingSession(graph, ("a",), lambda _: None)
