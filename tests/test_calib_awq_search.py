"""The search of AWQ: what it chooses, what that is worth in logits, and that a killed run goes on."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from calib.awq import AwqScales, DecoderSource, scale_decoder
from calib.awq.judge import Trial
from calib.awq.search import ALPHAS, scale_for_alpha
from calib.errors import DataError, RunError, StoreError
from calib.precision import FLOAT32, Precision, Precisions, graph_file_of
from calib.precision.bundle import GraphLogits
from calib.precision.cases import random_cases
from calib.precision.convert import convert_model
from calib.precision.loss import PrecisionLoss, measure_loss
from calib.precision.rounding import rounded_rows
from calib.precision.scaled import Scaled
from calib.precision.weight_file import WeightFile, source_of
from calib.precision.weight_only import quantized_rows
from calib.precision.widened import Widened, numbers_of
from calib.ranges import Keep
from fopru_graph.files import write_model
from runtime import contract
from runtime.manifest import DecoderInfo

VOCAB = 50
DECODER = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[b, s, WIDTH] inputs_embeds, int64[b, t] attention_mask, int64[b, s] position_ids,
       int64 num_logits_to_keep, float[b, 1, p, 4] past_key, float[b, 1, p, 4] past_value)
        => (float[b, s, {VOCAB}] logits)
    {{
        h = SimplifiedLayerNormalization <axis = -1> (inputs_embeds, gain)
        gate = MatMul(h, gates) raw = MatMul(h, ups) up = Add(raw, shift)
        soft = Sigmoid(gate) open = Mul(gate, soft) m = Mul(open, up)
        found = MatMul(m, downs) next = Add(inputs_embeds, found)
        last = SimplifiedLayerNormalization <axis = -1> (next, final)
        logits = MatMul(last, head)
    }}
"""
TABLE = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (int64[b, s] input_ids) => (float[b, s, WIDTH] inputs_embeds)
    { inputs_embeds = Gather(table, input_ids) }
"""
INT4 = Precision("int4", accuracy_level=0)


def write(path: Path, text: str, weights: dict[str, np.ndarray]) -> None:
    model = ir.from_proto(onnx.parser.parse_model(text))
    for name, array in weights.items():
        value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value, value.type = ir.tensor(array, name=name), ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape(array.shape)
        model.graph.register_initializer(value)
    for value in model.graph.inputs:
        value.name = str(value.name).replace("past_", "past_key_values.0.")
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=f"{path.name}_data")


def bundle(root: Path, width: int = 64, middle: int = 96, outlier: float = 30.0) -> DecoderSource:
    """A decoder of one MLP; a few channels of its norms are `outlier` times as large as others."""
    rng = np.random.default_rng(3)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return np.asarray(rng.standard_normal((rows, columns)) / rows**0.5, np.float32)

    gains = [np.ones(width, np.float32) for _ in range(2)]
    for gain in gains:
        gain[rng.choice(width, 3, replace=False)] *= outlier
    write(
        root / contract.graph_file(contract.DECODER),
        DECODER.replace("WIDTH", str(width)),
        {
            "gain": gains[0],
            "final": gains[1],
            "shift": matrix(1, middle)[0],
            "gates": matrix(width, middle),
            "ups": matrix(width, middle),
            "downs": matrix(middle, width),
            "head": matrix(width, VOCAB),
        },
    )
    table = rng.standard_normal((VOCAB, width)).astype(np.float32)
    write(
        root / contract.graph_file(contract.EMBED_TOKENS),
        TABLE.replace("WIDTH", str(width)),
        {"table": table},
    )
    return DecoderSource(root, DecoderInfo(1, 1, 4, width, VOCAB, 512))


def found(source: DecoderSource, file: Path, precision: Precision = INT4, cases: int = 128) -> AwqScales:
    return scale_decoder(source, precision, random_cases(cases, VOCAB), Keep(file, "key"))


def loss(source: DecoderSource, precision: Precision, scales: AwqScales | None, out: Path) -> PrecisionLoss:
    """Of the converted decoder, on other tokens than scales were found with."""
    (out / "onnx").mkdir(parents=True)
    embed = contract.graph_file(contract.EMBED_TOKENS)
    for name in (embed, f"{embed}_data"):
        (out / name).write_bytes((source.root / name).read_bytes())
    model = ir.load(source.root / contract.graph_file(contract.DECODER))
    if scales is not None:
        scales.apply(model)
    with WeightFile(out / "onnx/new.onnx_data") as file:
        convert_model(model, precision, file)
    write_model(model, out / graph_file_of(contract.DECODER, precision))
    converted = GraphLogits(out, Precisions(decoder=precision), source.decoder)
    cases = random_cases(384, VOCAB, seed=8)
    return measure_loss(GraphLogits(source.root, FLOAT32, source.decoder), converted, cases)


@pytest.mark.parametrize(
    "precision",
    [INT4, Precision("int4", symmetric=False, accuracy_level=0), Precision("int4"), Precision("int8")],
    ids=["int4", "asymmetric", "with rounded activations", "int8"],
)
def test_outliers_cost_less(precision: Precision, tmp_path: Path) -> None:
    source = bundle(tmp_path / "b")
    scales = found(source, tmp_path / "s", precision)
    assert [fold.name for fold in scales.folds] == ["gates.input", "downs.output", "head.input"]
    assert scales.notes == ()
    for fold in scales.folds:
        assert fold.error <= fold.plain
    assert scales.divergence is not None
    assert scales.divergence[1] < scales.divergence[0]
    plain, scaled = (loss(source, precision, each, tmp_path / str(each is None)) for each in (None, scales))
    # Planted outliers are what scales are for. Activations in 8 bits bring an error of their own to int8.
    share = 0.9 if precision.name == "int8" else 0.5
    assert scaled.mean_kl < share * plain.mean_kl
    assert scaled.mean_cosine > plain.mean_cosine
    assert scaled.top1_agreement >= plain.top1_agreement


def test_the_way_to_tensorrt_is_rounded_as_its_own(tmp_path: Path) -> None:
    source = bundle(tmp_path / "b")
    mine = found(source, tmp_path / "s")
    theirs = scale_decoder(
        DecoderSource(source.root, source.decoder, tensorrt=True),
        INT4,
        random_cases(128, VOCAB),
        Keep(tmp_path / "t", "key"),
    )
    for one, other in zip(mine.folds, theirs.folds, strict=True):
        assert other.plain > one.plain  # seven steps each way, not eight on one side
        assert other.error < other.plain


def test_nothing_is_scaled_where_nothing_is_gained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an error every exponent is as good as 0, which is the one that is taken."""
    monkeypatch.setattr("calib.awq.search.rounded_rows", lambda rows, *_, **__: np.zeros_like(rows))
    source = bundle(tmp_path / "b")
    scales = found(source, tmp_path / "s")
    assert {fold.alpha for fold in scales.folds} == {0.0}
    assert {fold.error for fold in scales.folds} == {1.0}
    assert scales.factors == {}
    assert scales.apply(ir.load(source.root / contract.graph_file(contract.DECODER))) == 0


@pytest.mark.parametrize("scaled", [0.5, 0.75, float("nan")])
def test_scales_that_do_not_help_are_left_out(
    scaled: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def divergence(_: Trial, scales: AwqScales | None) -> float:
        return 0.5 if scales is None else scaled

    monkeypatch.setattr(Trial, "divergence", divergence)
    source = bundle(tmp_path / "b")
    scales = found(source, tmp_path / "s")
    assert scales.factors == {}
    assert {(fold.alpha, fold.error - fold.plain) for fold in scales.folds} == {(0.0, 0.0)}
    assert scales.notes == (
        "the decoder is not scaled: its logits would not be nearer to float32 (mean KL divergence "
        f"{scaled:.3g} instead of 0.5)",
    )
    assert found(source, tmp_path / "s").folds == scales.folds  # as it was kept


def test_what_scales_are_worth_is_what_a_bundle_loses(tmp_path: Path) -> None:
    """On the same prompts the two numbers are those of the converted decoder, to the last bit."""
    source, cases = bundle(tmp_path / "b"), random_cases(384, VOCAB, seed=8)
    scales = scale_decoder(source, INT4, cases, Keep(tmp_path / "s", "key"))
    losses = [loss(source, INT4, each, tmp_path / str(each is None)) for each in (None, scales)]
    assert scales.divergence == tuple(each.mean_kl for each in losses)


def test_rows_that_are_no_multiple_of_the_block(tmp_path: Path) -> None:
    scales = found(bundle(tmp_path / "b"), tmp_path / "s", Precision("int4", block=128))
    assert scales == AwqScales(
        (),
        tuple(
            f"{name} is not scaled: its rows are not a multiple of 128"
            for name in ("gates.input", "downs.output", "head.input")
        ),
        {},
    )


@pytest.mark.parametrize("kept", [1, 2, 4, 5])
def test_a_killed_run_goes_on(kept: int, tmp_path: Path) -> None:
    source, file = bundle(tmp_path / "b"), tmp_path / "s"
    whole, steps = found(source, file), list[tuple[int, int]]()
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5  # a key, three groups, what they are worth
    file.write_bytes(b"".join(lines[:kept]) + b'{"name": "torn')
    (tmp_path / "s.rows").mkdir()
    (tmp_path / "s.rows/rows_7").write_bytes(b"left by a killed run")
    again = scale_decoder(
        source,
        INT4,
        random_cases(128, VOCAB),
        Keep(file, "key"),
        lambda done, total: steps.append((done, total)),
    )
    assert steps == [(number, 3) for number in range(min(kept - 1, 3), 4)]
    assert (again.folds, again.divergence) == (whole.folds, whole.divergence)
    assert again.factors.keys() == whole.factors.keys()
    for tensor, factors in whole.factors.items():
        for one, other in zip(factors, again.factors[tensor], strict=True):
            assert one.axis == other.axis
            assert np.array_equal(one.values, other.values)
    assert file.read_bytes() == b"".join(lines)
    assert not (tmp_path / "s.rows").exists()


def test_another_key_begins_anew(tmp_path: Path) -> None:
    source, file = bundle(tmp_path / "b"), tmp_path / "s"
    found(source, file)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(['{"key": "other"}', *(line.replace("0.", "9.") for line in lines[1:])]) + "\n")
    found(source, file)
    assert file.read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"name": "gates.input"}',
            r"the scales that were kept are damaged .*: run with --fresh to find them",
        ),
        ('{"name": "a", "alpha": 0, "error": 0, "plain": 0, "scale": "?"}', r"kept are damaged"),
        ('{"judged": [1]}', r"scales that were kept are damaged .*: run with --fresh to find them again"),
        ('{"judged": [1, "much"]}', r"kept are damaged"),
        ("nonsense", r"line 2 of .*s is damaged: remove the file, or run with --fresh"),
        ("[1]", r"line 2 of .*s is damaged"),
    ],
)
def test_damaged_scales(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s").write_text(f"{json.dumps({'key': 'key'})}\n{line}\n")
    with pytest.raises(StoreError, match=message):
        found(bundle(tmp_path / "b"), tmp_path / "s")


def test_no_prompt(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no prompt to take activations .*: check --data"):
        found(bundle(tmp_path / "b"), tmp_path / "s", cases=0)


def test_an_activation_that_is_not_finite(tmp_path: Path) -> None:
    source = bundle(tmp_path / "b", outlier=float("inf"))
    with pytest.raises(RunError, match=r"an activation of the decoder is not finite .*runtime\.check"):
        found(source, tmp_path / "s")


def test_scales_of_exponents() -> None:
    means = np.array([0.0, 1.0, 4.0, 16.0])
    assert ALPHAS[0] == 0
    assert ALPHAS[-1] == 1
    assert len(ALPHAS) == 21
    assert np.array_equal(scale_for_alpha(means, 0), np.ones(4, np.float32))
    assert np.array_equal(scale_for_alpha(np.zeros(4), 0.5), np.ones(4, np.float32))
    half = scale_for_alpha(means, 0.5)
    # float32 keeps 2^-24 of these.
    assert np.allclose(half[1:] / half[1], [1, 2, 4], rtol=1e-6, atol=0)
    assert np.isclose(half.max() * half.min(), 1, rtol=1e-6, atol=0)
    assert half.min() > 0


def test_one_weight_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in memory is a piece of a weight and what becomes of it, however large weights are."""
    monkeypatch.setattr("calib.precision.weight_file._CHUNK_BYTES", 1 << 18)
    source = bundle(tmp_path / "b", width=512, middle=1024)
    one = 512 * 1024 * 4
    cases = random_cases(128, VOCAB)
    tracemalloc.start()
    scales = scale_decoder(source, INT4, cases, Keep(tmp_path / "s", "key"))
    peak = tracemalloc.get_traced_memory()[1]
    model = ir.load(source.root / contract.graph_file(contract.DECODER))
    tracemalloc.reset_peak()
    assert scales.apply(model) == 7
    applied = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    with WeightFile(tmp_path / "w") as file:
        convert_model(model, INT4, file)
    converted = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Rows [128, 1024] and some pieces of 256 kB; all weights together are 3.1 times one.
    assert peak < 1.5 * one
    assert applied < 0.3 * one  # scales alone
    # A weight that is read is scaled as a whole, and quantised from a transposed copy of a piece.
    assert converted < 2.5 * one


def rounded_by_runtime(rows: np.ndarray, precision: Precision) -> np.ndarray:
    """The rows as ONNX Runtime's own product reads them: a product with the identity."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    values, scales, zeros = quantized_rows(rows, precision)
    count, width = rows.shape
    weights: dict[str, np.ndarray] = {"w": values, "s": scales.reshape(-1)}
    if not precision.symmetric:
        weights["z"] = zeros.reshape(-1)
    node = helper.make_node(
        "MatMulNBits",
        ["x", *weights],
        ["y"],
        domain="com.microsoft",
        K=width,
        N=count,
        bits=precision.bits,
        block_size=precision.block,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [width, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [width, count])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": np.eye(width, dtype=np.float32)})[0]
    return result.T


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["int4", "int8"])
@pytest.mark.parametrize("block", [32, 128])
def test_rounded_rows_are_what_the_runtime_multiplies_by(name: str, block: int, symmetric: bool) -> None:
    precision = Precision(name, block, symmetric, 0)
    rows = np.random.default_rng(3).standard_normal((5, 384)).astype(np.float32)
    # One product with 1 and a step of a scale: the last bits of float32.
    np.testing.assert_allclose(
        rounded_rows(rows, precision), rounded_by_runtime(rows, precision), rtol=1e-6, atol=1e-7
    )


def test_scaled_weights() -> None:
    source = ir.tensor(np.arange(6, dtype=np.float32).reshape(2, 3), name="w")
    factors = ((1, np.array([1, 2, 3], np.float32)), (0, np.array([1, 10], np.float32)))
    tensor = Scaled(source, factors)
    assert np.array_equal(tensor.numpy(), [[0, 2, 6], [30, 80, 150]])
    assert np.array_equal(source.numpy(), np.arange(6).reshape(2, 3))
    assert source_of(tensor) == source_of(Scaled(source, factors))
    assert source_of(tensor) != source_of(Scaled(source, factors[:1]))
    assert source_of(tensor) != source_of(source)
    short = Widened(ir.tensor(np.arange(3).astype(ml_dtypes.bfloat16), name="s"))
    wide = Scaled(short, ((0, np.array([2, 2, 2], np.float32)),))
    assert np.array_equal(numbers_of(wide), [0, 2, 4])


def test_scales_are_applied_once(tmp_path: Path) -> None:
    source = bundle(tmp_path / "b")
    scales = found(source, tmp_path / "s")
    assert all(fold.alpha > 0 for fold in scales.folds)
    model = ir.load(source.root / contract.graph_file(contract.DECODER))
    assert scales.apply(model) == len(scales.factors) == 7
    assert scales.apply(model) == 0
