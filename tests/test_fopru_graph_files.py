"""From file to file: shared weights, files that are missing, damaged or in the wrong place; options; public names."""

# ruff: noqa: E501  (one case per line)
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import fopru_graph
from fopru_graph import (
    GraphError,
    GraphFileError,
    LocateError,
    OptionError,
    PruneOptions,
    RewriteError,
    UnsupportedGraphError,
    api,
    load_graph,
    options,
    prune_file,
)
from runtime import contract
from tests.toy_encoders import Toy, export, pixels, text_encoder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An exported encoder, and its weight file beside it."""
    target = tmp_path / "encoder.onnx"
    ir.save(ir.load(export(Toy())), target, external_data="encoder.onnx.data")
    return target


def weights_of(path: Path) -> Path:
    return path.with_name("encoder.onnx.data")


def run(path: Path, keep: int | None) -> list[np.ndarray]:
    feeds = {"pixel_values": pixels(Toy(), 2)}
    if keep is not None:
        feeds["num_keep"] = np.array([keep], np.int64)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds)]


def test_the_pruned_file_shares_the_weights(source: Path) -> None:
    before = weights_of(source).read_bytes()
    target = source.with_name("pruned.onnx")
    prune_file(source, target)
    assert weights_of(source).read_bytes() == before
    assert sorted(path.name for path in source.parent.iterdir()) == [
        "encoder.onnx",
        "encoder.onnx.data",
        "pruned.onnx",
    ]
    old, new = ir.load(source), ir.load(target)
    for name, value in new.graph.initializers.items():
        was = old.graph.initializers.get(name)
        if was is None:
            assert name.startswith("fopru/")
            continue
        tensor, shared = value.const_value, was.const_value
        if isinstance(shared, ir.ExternalTensor):
            assert isinstance(tensor, ir.ExternalTensor)
            pointer = (tensor.location, tensor.offset, tensor.nbytes)
            assert pointer == ("encoder.onnx.data", shared.offset, shared.nbytes)
        else:
            assert shared is not None
            assert shared.nbytes < 256
            assert value.const_value.numpy().tobytes() == shared.numpy().tobytes()  # type: ignore[union-attr]
    extra = sum(
        value.const_value.nbytes
        for name, value in new.graph.initializers.items()
        if name.startswith("fopru/")
    )  # type: ignore[union-attr]
    assert extra < 1000


def test_the_pruned_file_runs_beside_the_other(source: Path) -> None:
    target = source.with_name("pruned.onnx")
    prune_file(source, target)
    (whole,) = run(source, None)
    features, _, kept = run(target, 5)
    assert features.tobytes() == np.take_along_axis(whole, kept[:, :, None], axis=1).tobytes()


def test_weights_inside_the_protobuf_are_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "encoder.onnx", tmp_path / "elsewhere" / "pruned.onnx"
    target.parent.mkdir()
    ir.save(text_encoder(), source)
    prune_file(source, target)
    kept = load_graph(target).graph.initializers
    for name in ("wq", "wk", "wv", "wo"):
        assert (
            kept[name].const_value.numpy().tobytes()
            == load_graph(source).graph.initializers[name].const_value.numpy().tobytes()
        )  # type: ignore[union-attr]


def test_an_older_pruned_file_is_replaced(source: Path) -> None:
    target = source.with_name("pruned.onnx")
    target.write_text("older")
    prune_file(source, target, PruneOptions(aggregation="cls"))
    assert run(target, 4)[0].shape == (2, 4, 12)


def test_nothing_is_left_when_pruning_fails(source: Path) -> None:
    target = source.with_name("pruned.onnx")
    target.write_text("older")
    with pytest.raises(OptionError, match="grid is 2x2"):
        prune_file(source, target, PruneOptions(strategy="row", grid=(2, 2)))
    assert target.read_text() == "older"
    assert len(list(source.parent.iterdir())) == 3


def test_nothing_is_left_when_writing_fails(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    target = source.with_name("pruned.onnx")
    monkeypatch.setattr(api.ir, "save", full_disk)
    with pytest.raises(GraphFileError, match=r"cannot write '.*pruned\.onnx': No space left on device"):
        prune_file(source, target)
    assert len(list(source.parent.iterdir())) == 2


@pytest.mark.parametrize(("error", "message"), [
    (OSError("1024 requested and 512 written"), r"no space left on device \(1024 requested and 512 written\)"),
    (OSError("the volume went away"), "the volume went away"),
    (OSError(), "OSError"),
])  # fmt: skip
def test_writing_fails_without_an_error_number(
    source: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, message: str
) -> None:
    def fail(*_args: object) -> None:
        raise error

    monkeypatch.setattr(api.ir, "save", fail)
    with pytest.raises(GraphFileError, match=rf"cannot write '.*pruned\.onnx': {message}$"):
        prune_file(source, source.with_name("pruned.onnx"))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "encoder.onnx"
    ir.save(text_encoder(), source)
    with pytest.raises(GraphFileError, match=r"cannot write '.*': No such file or directory"):
        prune_file(source, tmp_path / "nowhere" / "pruned.onnx")


def test_another_folder_is_refused(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(GraphFileError, match=r"shares the weight file 'encoder\.onnx\.data': write it there"):
        prune_file(source, other / "pruned.onnx")


def test_the_source_is_not_overwritten(source: Path) -> None:
    with pytest.raises(GraphFileError, match="is the source: name another file"):
        prune_file(source, source.parent / "." / "encoder.onnx")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GraphFileError, match=r"there is no file '.*none\.onnx': give the path"):
        prune_file(tmp_path / "none.onnx", tmp_path / "pruned.onnx")


@pytest.mark.parametrize("content", [b"not a protobuf at all", b"\x00" * 40], ids=["text", "zeros"])
def test_a_corrupt_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(content)
    with pytest.raises(
        GraphFileError, match=r"'.*encoder\.onnx' is not a readable ONNX file .*export it again"
    ):
        load_graph(path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"")
    with pytest.raises(GraphFileError, match=r"is not a readable ONNX file .* export it again"):
        load_graph(path)


def test_a_graph_without_nodes(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    ir.save(
        ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 20]> g (float[1] x) => (float[1] x) {}'), path
    )
    with pytest.raises(GraphFileError, match=r"is not a readable ONNX file \(it has no nodes\)"):
        load_graph(path)


@pytest.mark.parametrize("part", [0.05, 0.5, 0.99])
def test_a_truncated_file(source: Path, part: float) -> None:
    whole = source.read_bytes()
    source.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(
        GraphFileError,
        match=r"'.*encoder\.onnx' is not a readable ONNX file \(Error parsing message .*\): export it again",
    ):
        prune_file(source, source.with_name("pruned.onnx"))
    assert not source.with_name("pruned.onnx").exists()


def test_a_missing_weight_file(source: Path) -> None:
    weights_of(source).unlink()
    with pytest.raises(
        GraphFileError, match=r"weight file '.*encoder\.onnx\.data' of '.*' is missing: keep both"
    ):
        load_graph(source)


def test_a_truncated_weight_file(source: Path) -> None:
    data = weights_of(source)
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(GraphFileError, match=r"has 1000 bytes, but '.*' of '.*' ends at \d+: copy it again"):
        load_graph(source)


def test_weights_are_not_read(source: Path) -> None:
    # Only pointers are: other content of the same size gives the same graph.
    targets = [source.with_name(name) for name in ("first.onnx", "second.onnx")]
    prune_file(source, targets[0])
    weights_of(source).write_bytes(bytes(weights_of(source).stat().st_size))
    prune_file(source, targets[1])
    assert targets[0].read_bytes() == targets[1].read_bytes()


def test_more_than_two_gigabytes_of_weights_stay_on_disk(tmp_path: Path) -> None:
    side = 24_000  # 2.3 GB of float32, in a sparse file that takes no room
    model = text_encoder(tail="y1 = Slice(y, one, many, one) h = MatMul(y1, up) g = Gelu(h) t = MatMul(g, wide) image_features = MatMul(t, down)",
                         more=f", float[8,{side}] up, float[{side},{side}] wide, float[{side},8] down",
                         tensors={"up": np.zeros((8, side), np.float32), "down": np.zeros((side, 8), np.float32)})  # fmt: skip
    weights, source, target = (tmp_path / name for name in ("big.data", "big.onnx", "pruned.onnx"))
    with weights.open("wb") as file:
        file.truncate(4 * side * side)
    wide = next(
        value for node in model.graph for value in node.inputs if value is not None and value.name == "wide"
    )
    tensor = ir.ExternalTensor(
        "big.data",
        0,
        4 * side * side,
        ir.DataType.FLOAT,
        shape=ir.Shape([side, side]),
        name="wide",
        base_dir=tmp_path,
    )
    wide.const_value = tensor
    model.graph.register_initializer(wide)
    ir.save(model, source)
    report = prune_file(source, target)
    assert report.gather == "early"
    assert target.stat().st_size < 2_000_000
    kept = load_graph(target).graph.initializers["wide"].const_value
    assert isinstance(kept, ir.ExternalTensor)
    assert kept.nbytes > 2**31


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"strategy": "best"}, "strategy is 'best', but it is one of rank, row"),
        ({"aggregation": "max"}, "aggregation is 'max', but it is one of col_mean, col_mean_patch, cls"),
        ({"layer": 1, "tap": "p"}, "layer 1 and tap 'p' both name the scoring attention: give one"),
        ({"layer": -1}, "layer is -1, but layers are counted from 0"),
        ({"first_layer": -1}, "first_layer is -1, but layers are counted from 0: give a number >= 0"),
        ({"score_memory": 0}, "score_memory is 0: give a number of bytes >= 1, or None for no limit"),
        ({"seed": -1}, "seed is -1: give a number >= 0"),
        ({"grid": "auto"}, r"grid is 'auto', but it is \(rows, columns\), 'input', or None"),
        (
            {"scores_only": True, "scores_output": False},
            "scores_only is True and scores_output is False: then nothing is added",
        ),
        ({"prefix_tokens": -1}, "prefix_tokens is -1: give the number of leading rows kept, >= 0"),
        ({"special_tokens": -2}, "special_tokens is -2: give the number of leading rows, >= 0"),
        (
            {"dropped_rows": -1},
            "dropped_rows is -1: give the number of leading attention rows .*, >= 0, or None",
        ),
        ({"grid": (0, 4)}, r"grid is \(0, 4\), but it is \(rows, columns\), both >= 1"),
        ({"grid": (4,)}, r"grid is \(4,\), but it is \(rows, columns\)"),
        ({"strategy": "row"}, "strategy 'row' works on a grid of tokens: give grid="),
    ],
)
def test_options_that_cannot_be_meant(choices: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PruneOptions(**choices)  # type: ignore[arg-type]


def test_errors_have_one_base() -> None:
    for error in (OptionError, GraphFileError, UnsupportedGraphError, LocateError, RewriteError):
        assert issubclass(error, GraphError)
    assert issubclass(OptionError, ValueError)


def test_tensor_names_are_those_of_the_contract() -> None:
    for name in ("IMAGE_FEATURES", "NUM_KEEP", "KEPT_INDICES", "TOKEN_SCORES"):
        assert getattr(options, name) == getattr(contract, name)


def test_public_names() -> None:
    assert sorted(fopru_graph.__all__) == [
        *(
            "AGGREGATIONS",
            "GraphError",
            "GraphFileError",
            "LocateError",
            "OptionError",
            "PassCount",
            "PruneOptions",
        ),
        *(
            "PruneReport",
            "RewriteError",
            "STRATEGIES",
            "UnsupportedGraphError",
            "load_graph",
            "prune",
            "prune_file",
        ),
    ]
