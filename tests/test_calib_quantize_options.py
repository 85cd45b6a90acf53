"""Options of `python -m calib.quantize`, targets, the split of samples, and what stays float32."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calib.data.sample import Sample
from calib.errors import CalibError, OptionError, RunError, StoreError
from calib.precision import Precision
from calib.quantize import memory as memory_module
from calib.quantize.__main__ import main
from calib.quantize.keep_float import choose_float
from calib.quantize.memory import Memory, key_of
from calib.quantize.options import QuantizeOptions, parse_options
from calib.quantize.run import _by_reason
from calib.quantize.split import pictures_of, split_samples
from calib.quantize.targets import check_target, decoders_of, is_tensorrt, target_notes
from calib.quantize.trial import VisionFidelity
from calib.ranges import Method
from calib.sensitivity import Group, GroupLoss
from fopru_graph.lint.targets import TARGETS
from runtime import contract


def options(*more: str, precision: str = "vision=int8,decoder=int4") -> QuantizeOptions:
    return parse_options(["bundles/b", "--precision", precision, "--data", "photos", *more])


# --- options


def test_defaults() -> None:
    parsed = options()
    assert parsed.precisions.names == ("w8a8", "int4", "int4")
    assert parsed.output == Path.cwd() / "bundles/b-vision-int8-decoder-int4"
    target = parse_options(
        ["bundles/b", "--data", "d", "--precision", "vision=fp8", "--target", "tensorrt11"]
    )
    assert target.output == Path.cwd() / "bundles/b-vision-fp8-tensorrt11"
    assert parsed.work == Path.cwd() / "bundles/b-calibration"
    assert (parsed.samples, parsed.seed, parsed.ranges) == (64, 0, Method("minmax"))
    assert (parsed.keep_float, parsed.min_cosine, parsed.awq) == (("auto",), 0.99, True)
    assert (parsed.ratio, parsed.target, parsed.tensorrt) == (None, None, False)


def test_everything_can_be_said() -> None:
    parsed = options(
        "--ranges", "percentile:99.9", "--keep-float", "patches, projector", "--ratio", "0.5",
        "--samples", "8", "--output", "o", "--work", "w", "--no-awq", "--fresh", "--json", "--threads", "2",
        "--seed", "3",
        "--target", "jetpack6", "--max-new-tokens", "4", "--min-cosine", "0.9",
    )  # fmt: skip
    assert parsed.ranges == Method("percentile", 99.9)
    assert parsed.keep_float == ("patches", "projector")
    assert (parsed.output, parsed.work) == (Path("o"), Path("w"))
    assert parsed.tensorrt
    assert parsed.precisions.names == ("w8a8", "fp16", "int4")  # TensorRT has no tables in 4 bits


@pytest.mark.parametrize(
    ("precision", "names"),
    [
        ("vision=int8", ("w8a8", "fp32", "fp32")),
        ("vision=w8a8", ("w8a8", "fp32", "fp32")),
        ("decoder=int8:block=128", ("fp32", "int8", "int8")),
        ("int8", ("w8a8", "int8", "int8")),
        ("vision=fp16,embed=fp16", ("fp16", "fp16", "fp32")),
    ],
)
def test_what_parts_become(precision: str, names: tuple[str, ...]) -> None:
    assert options(precision=precision).precisions.names == names


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--samples", "0"), "samples is 0: give at least 1"),
        (("--max-new-tokens", "0"), "max-new-tokens is 0: give at least 1"),
        (("--threads", "-1"), "threads is -1: give at least 1"),
        (("--seed", "-1"), "seed is -1: give 0 or more"),
        (
            ("--ratio", "0"),
            "ratio is 0.0, but it is the fraction of tokens kept: give a number in (0, 1], as 0.3",
        ),
        (("--ratio", "nan"), "ratio is nan, but it is the fraction of tokens kept"),
        (("--min-cosine", "1.5"), "min-cosine is 1.5: give a number in (0, 1], as 0.99"),
        (
            ("--output", "bundles/b"),
            "output is the bundle bundles/b itself, which stays as it is: give --output",
        ),
        (("--ranges", "max"), "ranges is 'max', expected one of minmax, percentile, entropy"),
        (
            ("--keep-float", "auto,patches"),
            "keep-float is 'auto,patches': give auto, none, or names of groups",
        ),
        (("--keep-float", ""), "keep-float is '': give auto, none, or names of groups, as layers.0.mlp"),
        (
            ("--output", "bundles/b/sub"),
            "output is bundles/b/sub, which is inside the bundle bundles/b: give --output another folder",
        ),
        (("--work", "bundles/b/w"), "work is bundles/b/w, which is inside the bundle bundles/b: give --work"),
        (
            ("--output", "bundles/o", "--work", "bundles/o/w"),
            "work is bundles/o/w, which is inside the bundle bundles/o: give --work another folder",
        ),
        (("--target", "orin"), "target is 'orin', but it is one of jetpack6"),
    ],
)
def test_refused_options(given: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(CalibError) as error:
        options(*given)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("flag", ["output", "work"])
def test_results_are_not_data_of_the_next_run(flag: str, tmp_path: Path) -> None:
    inside = tmp_path / "new"
    with pytest.raises(OptionError) as error:
        options("--data", str(tmp_path), f"--{flag}", str(inside))
    assert str(error.value) == (
        f"{flag} is {inside}, which is inside the data {tmp_path}, and would be data of the next run: give "
        f"--{flag} another folder"
    )


def test_groups_of_an_encoder_that_is_not_quantised() -> None:
    with pytest.raises(OptionError) as error:
        options("--keep-float", "layers.0.mlp", precision="decoder=int4")
    assert str(error.value) == (
        "keep-float is 'layers.0.mlp', which is about a vision encoder in 8 bits, but precision is "
        "'decoder=int4': add vision=int8, or leave --keep-float out"
    )
    assert options("--keep-float", "none", precision="decoder=int4").keep_float == ("none",)


@pytest.mark.parametrize(
    ("precision", "sentence"),
    [
        ("visoin=int8", "precision is given for 'visoin', expected one of vision, embed, decoder"),
        ("vision=int3", "precision is 'int3', expected one of"),
        (
            "vision=int4",
            "precision of vision is int4, but ONNX Runtime has fp32, fp16, int8: give one of these",
        ),
        (
            "vision=int8:block=128",
            "precision of vision is int8:block=128, but its 8 bits have a scale per channel",
        ),
        (
            "vision=fp8",
            "precision of vision is fp8, but ONNX Runtime has fp32, fp16, int8: give one of these with "
            "--precision, or a --target of TensorRT, whose chips have fp8",
        ),
        ("decoder=fp8", "precision of embed is fp8, but ONNX Runtime has fp32, fp16, int8, int4: give one"),
        (
            "decoder=w8a8,embed=fp32",
            "precision of decoder is int8, but ONNX Runtime has fp32, fp16, int8, int4",
        ),
        ("vision=fp32", "precision is 'vision=fp32', which changes nothing: give vision=int8,decoder=int4"),
    ],
)
def test_refused_precisions(precision: str, sentence: str) -> None:
    with pytest.raises(OptionError) as error:
        options(precision=precision)
    assert str(error.value).startswith(sentence)


def test_importing_needs_numpy_alone() -> None:
    heavy = ("torch", "onnxruntime", "onnx_ir", "rich", "PIL", "pyarrow")
    code = f"import sys, calib.quantize.__main__; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_said_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert main(["bundle", "--precision", "vision=int8", "--data", "photos"]) == 2
    assert "pip install 'fopru-edge[calib]'" in capsys.readouterr().err


def test_an_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(tmp_path / "none"), "--precision", "vision=int8", "--data", str(tmp_path / "p")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: there is no bundle at {tmp_path / 'none'}")
    assert err.count("\n") == 1


# --- targets


@pytest.mark.parametrize(
    ("target", "precision", "sentence"),
    [
        (
            "jetpack6",
            "vision=fp8",
            r"precision of vision is fp8, but target jetpack6 \(JetPack 6.1 and 6.2: TensorRT 10.3 on "
            r"Orin \(SM87\)\) has fp16, int8: give one of these with --precision$",
        ),
        ("jetpack6", "decoder=int8", "precision of decoder is int8, but target jetpack6 .* has fp16, int4"),
        ("jetpack6", "vision=fp32", "precision of vision is fp32, but target jetpack6 .* has fp16, int8"),
        (
            "jetpack6",
            "decoder=int4,embed=int4",
            "precision of embed is int4, but target jetpack6 .* has fp16",
        ),
        (
            "jetpack7",
            "decoder=int4:asymmetric",
            r"precision of decoder is int4:asymmetric, but TensorRT \(jetpack7\) has neither zero points nor "
            "an accuracy for weights in 4 bits: give int4$",
        ),
        ("ort", "vision=fp8", r"precision of vision is fp8, but target ort .* or a --target of TensorRT"),
    ],
)
def test_what_a_target_lacks(target: str, precision: str, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        options("--target", target, precision=precision)


def test_targets_with_fp8() -> None:
    having = [name for name in TARGETS if is_tensorrt(name) and "fp8" in TARGETS[name].precisions]
    assert having == ["jetpack7", "tensorrt10", "tensorrt11", "tensorrt-rtx"]
    for name in having:
        check_target(name, options("--target", name, precision="vision=fp8").precisions)


def test_chips_without_a_precision_are_noted() -> None:
    fp8 = options("--target", "jetpack7", precision="vision=fp8").precisions
    assert target_notes("jetpack7", fp8) == ("fp8 needs SM89 or newer: not for SM87",)
    assert target_notes("jetpack6", options("--target", "jetpack6").precisions) == ()
    assert target_notes(None, fp8) == ()


def test_decoders_that_are_kept() -> None:
    both = {contract.DECODER: contract.SHARED, contract.DECODER_PORTABLE: contract.APPEND}
    assert list(decoders_of(True, Precision("int4"), both)) == [contract.DECODER_PORTABLE]
    assert list(decoders_of(False, Precision("int4"), both)) == [contract.DECODER]
    assert decoders_of(False, Precision(), both) == both
    portable = {contract.DECODER_PORTABLE: contract.APPEND}
    assert decoders_of(False, Precision("int4"), portable) == portable
    with pytest.raises(
        OptionError, match="the bundle has decoder_model_merged alone, whose operators are ONNX"
    ):
        decoders_of(True, Precision("int4"), {contract.DECODER: contract.SHARED})


# --- the split


def sample(name: str, group: str) -> Sample:
    return Sample(name, (b"",), "?", None, f"{name} {group}", group)


def test_a_quarter_of_the_pictures_is_held_out_whole() -> None:
    samples = [sample(f"{number}", f"picture {number // 2}") for number in range(40)]
    split = split_samples(samples, 0)
    groups = [{each.group for each in part} for part in (split.collect, split.judge)]
    assert not groups[0] & groups[1]
    assert [len(own) for own in groups] == [15, 5]
    assert len(split.collect) + len(split.judge) == 40
    assert set(split.tune) < set(split.collect)
    assert len({each.group for each in split.tune}) == 5
    assert not split.shared
    assert split == split_samples(samples, 0)
    assert split != split_samples(samples, 1)
    assert {each.name for each in split_samples(samples[::-1], 0).judge} == {
        each.name for each in split.judge
    }


def test_two_pictures_and_one() -> None:
    split = split_samples([sample("a", "1"), sample("b", "2")], 0)
    assert [len(split.collect), len(split.judge)] == [1, 1]
    assert split.tune == split.collect
    alone = split_samples([sample("a", "1"), sample("b", "1")], 0)
    assert alone.shared
    assert alone.collect == alone.tune == alone.judge
    assert [each.name for each in pictures_of(alone.judge)] == ["a"]


# --- memory


def test_an_answer_is_found_once_with_every_bit(tmp_path: Path) -> None:
    memory, calls = Memory(tmp_path / "m"), []

    def find() -> dict[str, float]:
        calls.append(1)
        return {"x": 1 / 3}

    assert (
        memory.answer("trials", key_of(1), find) == memory.answer("trials", key_of(1), find) == {"x": 1 / 3}
    )
    assert len(calls) == 1
    memory.answer("trials", key_of(2), find)
    with memory.begin(fresh=False):
        memory.answer("trials", key_of(1), find)
    assert len(calls) == 2
    with memory.begin(fresh=True):
        memory.answer("trials", key_of(1), find)
    assert len(calls) == 3


def test_another_release_finds_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of("a", 1)
    monkeypatch.setattr(memory_module, "__version__", "99")
    assert key_of("a", 1) != before


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """Two would write to the same files; `--fresh` takes nothing away from one that runs."""
    (tmp_path / "awq").mkdir()
    (tmp_path / "thesis.tex").touch()
    (tmp_path / "trial-x").mkdir()
    with Memory(tmp_path).begin(fresh=False):
        for fresh in (False, True):
            with (
                pytest.raises(StoreError, match=r"another run writes to .*lock: wait for it, or choose ano"),
                Memory(tmp_path).begin(fresh=fresh),
            ):
                pass
        assert sorted(path.name for path in tmp_path.iterdir()) == ["awq", "lock", "thesis.tex", "trial-x"]
    with Memory(tmp_path).begin(fresh=True):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "thesis.tex"]


def test_arrays_are_found_once(tmp_path: Path) -> None:
    memory, calls = Memory(tmp_path), []

    def find() -> dict[str, Any]:
        calls.append(1)
        return {"x": np.array([1 / 3], np.float32)}

    for _ in range(2):
        np.testing.assert_array_equal(memory.arrays("a", "k", find)["x"], np.array([1 / 3], np.float32))
    assert len(calls) == 1
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["k.npz"]

    def fail() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory.arrays("a", "other", fail)
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["k.npz"]


def test_damage_is_said(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    (tmp_path / "a").mkdir()
    for name in ("k.json", "k.npz"):
        (tmp_path / "a" / name).write_bytes(b"{")
    with pytest.raises(StoreError, match=r"k.json is damaged \(.*\): remove the file, or run with --fresh"):
        memory.answer("a", "k", dict)
    with pytest.raises(StoreError, match=r"k.npz is damaged \(.*\): remove the file, or run with --fresh"):
        memory.arrays("a", "k", dict)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunError, match=r"file/w cannot be written \(.*\): give another folder with --work"),
        Memory(tmp_path / "file" / "w").begin(fresh=False),
    ):
        pass


# --- notes


def test_layers_that_are_not_scaled_for_one_reason_are_one_note() -> None:
    notes = [f"layers.{number}.mlp is not scaled: rows" for number in range(5)]
    assert _by_reason(
        ["the decoder is not scaled: logits", *notes, "something else", "x is not scaled: odd"]
    ) == [
        "the decoder is not scaled: logits",
        "layers.0.mlp, layers.1.mlp, layers.2.mlp and 2 more are not scaled: rows",
        "something else",
        "x is not scaled: odd",
    ]
    assert _by_reason(notes[:2]) == ["layers.0.mlp, layers.1.mlp are not scaled: rows"]


# --- what stays float32

LOSSES = tuple(
    GroupLoss(Group(name, (f"{name}.w",)), loss, loss)
    for name, loss in (("a", 0.01), ("b", 0.3), ("c", 0.002), ("d", 0.1))
)


def fidelity(cosine: float, chosen: float | None = 1.0) -> VisionFidelity:
    return VisionFidelity(1, cosine, cosine, chosen, chosen, 1.0, 1.0)


def lost(weights: frozenset[str]) -> VisionFidelity:
    """A cosine of 1 less all losses of groups that are quantised."""
    return fidelity(1 - sum(each.loss for each in LOSSES if not set(each.group.weights) & weights))


def test_auto_leaves_the_fewest_of_the_worst() -> None:
    assert choose_float(("auto",), LOSSES, 0.95, lost) == (("b", "d"), frozenset({"b.w", "d.w"}))
    assert choose_float(("auto",), LOSSES, 0.5, lost) == ((), frozenset())


def test_auto_looks_at_kept_tokens_too() -> None:
    def judge(weights: frozenset[str]) -> VisionFidelity:
        return fidelity(1.0, 0.99 if "d.w" in weights else 0.97)

    assert choose_float(("auto",), LOSSES, 0.5, judge)[0] == ("b", "d")
    undefined = choose_float(("auto",), LOSSES, 0.5, lambda _: fidelity(1.0, None))
    assert undefined[0] == ()


def test_names_and_none_are_taken_as_they_are() -> None:
    assert choose_float(("c",), LOSSES, 0.99, lost) == (("c",), frozenset({"c.w"}))
    assert choose_float(("none",), LOSSES, 0.99, lost) == ((), frozenset())


def test_a_fidelity_holds_by_features_and_by_kept_tokens() -> None:
    assert fidelity(0.99).holds(0.99)
    assert fidelity(0.99, None).holds(0.99)
    assert not fidelity(0.98).holds(0.99)
    assert not fidelity(0.99, 0.97).holds(0.99)


def test_nothing_left_to_quantise() -> None:
    with pytest.raises(
        RunError, match=r"the cosine 0.9999 holds with all 4 groups in float32 alone, so that noth"
    ):
        choose_float(("auto",), LOSSES, 0.9999, lost)
    with pytest.raises(
        RunError, match=r"keep-float names all 4 groups, so that nothing of the vision encoder"
    ):
        choose_float(("a", "b", "c", "d"), LOSSES, 0.5, lost)
    with pytest.raises(OptionError, match=r"keep-float names 'x', which the graph does not have.*a, b, c, d"):
        choose_float(("x",), LOSSES, 0.5, lost)
