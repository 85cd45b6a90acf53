"""`inspect`: layers, special tokens, and a verdict that pruning agrees with."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from fopru_graph import GraphFileError, LocateError, PruneOptions, prune
from fopru_graph.__main__ import main
from fopru_graph.inspection import LOCATORS, Layer, inspect, inspect_file
from tests.toy_encoders import Toy, export, text_encoder

NO_ATTENTION = "p = Softmax<axis=-1>(q) a = Mul(p, v)"


def saved(model: ir.Model, folder: Path) -> Path:
    ir.save(model, folder / "encoder.onnx")
    return folder / "encoder.onnx"


def table(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What `inspect` prints, blanks and line breaks as one blank; it must end well."""
    assert main(["inspect", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return " ".join(captured.out.split())


def test_layers_of_an_exported_encoder() -> None:
    report = inspect_file(export(Toy()))
    # the third layer feeds an output of the tower that the exporter cut off, or nothing
    used = [layer for layer in report.layers if layer.upstream]
    assert [layer.number for layer in used] == [0, 1]
    assert all(layer.number is None for layer in report.layers if not layer.upstream)
    assert used[0] == Layer(
        0, True, "softmax", used[0].node, 2, 17, 17, "float32", False, 4 * 2 * 17 * 17, used[0].tap
    )
    assert (report.locator, report.features, report.special_tokens) == ("scope", "image_features", 1)
    assert report.locator in LOCATORS
    assert report.producer.startswith("pytorch")
    assert report.opset == 20
    assert len(report.weight_files) == 1
    assert 0 < report.external_bytes <= report.weight_bytes
    assert [port.name for port in report.inputs] == ["pixel_values"]
    assert report.inputs[0].dims == ("images", 3, 16, 16)
    assert report.prunable
    assert report.verdict.startswith("early gather: from MatMul")


def test_the_tensor_to_tap_can_be_tapped() -> None:
    path = export(Toy())
    tap = next(layer.tap for layer in inspect_file(path).layers if layer.number == 0)
    report = prune(ir.load(path), PruneOptions(tap=tap))
    assert (report.layer, report.locator) == (0, "tensor")


def test_the_attention_operator() -> None:
    operator = next(layer for layer in inspect_file(export(Toy(opset=23))).layers if layer.number == 1)
    assert (operator.form, operator.heads, operator.queries, operator.keys, operator.masked) == (
        "attention_op",
        2,
        17,
        17,
        False,
    )
    assert operator.score_bytes == 4 * 2 * 17 * 17


@pytest.mark.parametrize(
    ("logits", "masked"),
    [
        ("m = Mul(s, half)", False),
        ("m = Mul(half, s)", False),
        ("l = Mul(s, half) m = Add(l, mask)", True),
        ("l = Mul(s, half) m = Where(cond, l, half)", True),
        ("l = Add(mask, s) m = Mul(l, half)", True),
    ],
)
def test_masks(logits: str, masked: bool, tmp_path: Path) -> None:
    attention = f"s = MatMul(q, k) {logits} p = Softmax<axis=-1>(m) a = MatMul(p, v)"
    more = ", float[1,1,1,7] mask = {0, 0, 0, -2, 0, 0, 1}, bool[1,1,1,7] cond = {1, 1, 1, 1, 1, 1, 0}"
    (layer,) = inspect_file(saved(text_encoder(attention=attention, more=more), tmp_path)).layers
    assert layer.masked is masked


def test_an_attention_beside_the_way_to_the_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tail = (
        "image_features = Slice(y, one, many, one, one) "
        "p2 = Softmax<axis=-1>(s) a4 = MatMul(p2, v) pooled = Identity(a4)"
    )
    model = text_encoder(tail=tail)
    pooled = next(value for node in model.graph for value in node.outputs if value.name == "pooled")
    pooled.shape, pooled.type = ir.Shape(["images", 2, 7, 4]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(pooled)
    path = saved(model, tmp_path)
    report = inspect_file(path)
    assert [(layer.number, layer.upstream) for layer in report.layers] == [(0, True), (None, False)]
    out = table(capsys, path)
    assert "not upstream" in out
    assert "output pooled float32 [images, 2, 7, 4]" in out
    assert "image_features float32 [images, 6, 8] ← the features" in out


def test_sizes_that_vary_have_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = text_encoder(rows="rows", kept="rows", tail="image_features = Identity(y)")  # type: ignore[arg-type]
    path = saved(model, tmp_path)
    (layer,) = inspect_file(path).layers
    assert (layer.queries, layer.keys, layer.score_bytes) == ("rows", "rows", None)
    out = table(capsys, path)
    assert "rows x rows" in out
    assert "varies" in out


def test_the_verdict_is_what_pruning_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(text_encoder(attention=NO_ATTENTION), tmp_path)
    report = inspect_file(path)
    assert (report.prunable, report.layers, report.locator) == (False, (), "")
    assert report.near_misses[0].reason.startswith("its input does not come from a MatMul")
    with pytest.raises(LocateError) as refusal:
        prune(ir.load(path))
    assert report.verdict == str(refusal.value)
    out = table(capsys, path)
    for part in ("nearly attention", "no no attention found among 1 candidates", "numbers from nothing"):
        assert part in out


def test_a_fused_attention_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fused = "a2 = com.microsoft.MultiHeadAttention<num_heads=2>(q0, k0, v0)"
    path = saved(text_encoder(attention=fused, merge="a3 = MatMul(a2, wo) y = Add(x, a3)"), tmp_path)
    report = inspect_file(path)
    assert [miss.op_type for miss in report.fused] == ["com.microsoft::MultiHeadAttention"]
    assert "is a fused com.microsoft::MultiHeadAttention" in report.verdict
    assert "fused attention" in table(capsys, path)


def test_features_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    path = export(Toy())
    report = inspect_file(path, PruneOptions(features="pooled"))
    assert (report.features, report.prunable, report.special_tokens) == ("", False, None)
    assert report.verdict.startswith("there is no output 'pooled', the graph has image_features")
    assert {layer.upstream for layer in report.layers} == {None}  # all are shown, and numbered
    out = table(capsys, path, "--features", "pooled")
    assert "not known" in out
    assert "special tokens the graph does not tell" in out


def test_a_graph_that_pruning_refuses_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, again = saved(text_encoder(), tmp_path), tmp_path / "pruned.onnx"
    assert main(["prune", str(path), "-o", str(again)]) == 0
    capsys.readouterr()
    report = inspect_file(again)
    assert report.prunable is False
    assert "num_keep" in report.verdict
    assert report.verdict in table(capsys, again)


def test_a_damaged_graph_is_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(saved(text_encoder(), tmp_path))
    next(node for node in model.graph.node if node.op_type == "Softmax").ClearField("input")
    model.graph.initializer[0].data_type = onnx.TensorProto.UNDEFINED
    path = tmp_path / "damaged.onnx"
    path.write_bytes(model.SerializeToString())
    report = inspect_file(path)
    assert (report.prunable, report.layers, report.features) == (False, (), "")
    assert "export it again" in report.verdict
    assert " ".join(report.verdict.split()) in table(capsys, path)


def test_a_bug_is_a_verdict_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr("fopru_graph.inspection.prune", fail)
    report = inspect_file(saved(text_encoder(), tmp_path))
    assert report.verdict == (
        "the rewriter failed (IndexError: list index out of range): this is a bug, report it with the graph"
    )


def test_notes_of_the_attempt_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = text_encoder(rows="rows", kept="rows", tail="image_features = Identity(y)")  # type: ignore[arg-type]
    path = saved(model, tmp_path)
    report = inspect_file(path, PruneOptions(special_tokens=1))
    assert report.prunable
    assert any("TensorRT's TopK takes at most 3839" in note for note in report.notes)
    assert inspect_file(path).notes == report.notes
    assert "note TensorRT's TopK" in table(capsys, path)


def test_in_memory_nothing_is_tried() -> None:
    report = inspect(text_encoder())
    assert (report.path, report.prunable, report.verdict) == ("", None, "")
    assert [layer.number for layer in report.layers] == [0]


def test_nothing_is_written_and_a_missing_file_is_an_error(tmp_path: Path) -> None:
    path = saved(text_encoder(), tmp_path)
    before = path.read_bytes()
    inspect_file(path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("encoder.onnx", before)]
    with pytest.raises(GraphFileError, match="there is no file"):
        inspect_file(tmp_path / "no.onnx")


def test_json_is_the_report_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    path = export(Toy())
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == inspect_file(path).to_dict()


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    out = table(capsys, export(Toy()))
    for part in (
        "opset 20, IR version",
        "input pixel_values float32 [images, 3, 16, 16]",
        "special tokens 1 leading rows of the attention",
        "numbers from the name scopes of torch's exporter",
        "17 x 17",
        "2.3 KiB",
        "pruning with the defaults yes early gather",
    ):
        assert part in out
