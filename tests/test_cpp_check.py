"""`fopru check`, and the comparison behind it, beside runtime/parity.py and runtime/check.py."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundle import load_bundle
from runtime.check import check_bundle, main
from runtime.costs import judged
from runtime.parity import STAGES, ParityReport, UnitScores, compare, format_report
from tests.cpp_build import cpp_tool
from tests.cpp_command import fopru, fopru_json
from tests.toy_bundle import ToyModel, rehash, write_toy_bundle

DATA = Path(__file__).parent / "data"
BUNDLES = ("bundle_v1", "bundle_v2", "bundle_v2_tiles", "bundle_v3", "bundle_v3_q4")
TOYS = {
    "row": ToyModel(strategy="row"),
    "prefix": ToyModel(prefix=1),
    "wide": ToyModel(grid=(3, 5)),
    "tiles of rows": ToyModel(strategy="row", pinpoints=((32, 32),)),
}
ROUNDING = 1e-9
"""Sums in float64 go in another order than NumPy's, in pairs."""

Arrays = dict[str, np.ndarray]
Costs = tuple[dict[str, str], dict[str, Any] | None]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy")


# ---- the comparison ----


def random_case(rng: np.random.Generator) -> tuple[Arrays, Arrays, UnitScores | None]:
    """A reference, and the same with some of it changed as devices and mistakes change it."""
    units, columns = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    tokens = columns * int(rng.integers(2, 5))
    row = bool(rng.integers(2))
    keep = columns if row else int(rng.integers(1, tokens))
    scores = rng.random((units, tokens)).astype(np.float32)
    if rng.integers(2):  # near-ties, and some that are just wider
        scores = (0.5 + scores * rng.choice([1e-6, 8e-6])).astype(np.float32)
    kept = [np.arange(columns) if row else np.sort(rng.permutation(tokens)[:keep]) for _ in range(units)]
    width = int(rng.integers(1, 6))
    reference: Arrays = {
        "pixel_values": rng.standard_normal((4, 5)).astype(np.float32),
        "kept_counts": np.full(units, keep, np.int64),
        "image_features": rng.standard_normal((units * tokens, width)).astype(np.float32),
        "token_scores": scores.reshape(-1),
        "kept_indices": np.concatenate(kept).astype(np.int64),
        "pruned_features": rng.standard_normal((units * keep, width)).astype(np.float32),
        "input_ids": rng.integers(0, 99, (1, 7)),
        "position_ids": np.arange(7)[None],
        "inputs_embeds": rng.standard_normal((1, 7, width)).astype(np.float32),
        "logits": rng.standard_normal((1, 9)).astype(np.float32) * 10.0 ** rng.integers(-6, 18),
        "tokens": rng.integers(0, 99, (1, 4)),
    }
    reference["logits"] = reference["logits"].astype(np.float32)
    measured = {name: array.copy() for name, array in reference.items()}
    further = rng.integers(3)
    if further:
        for name in ("logits", "tokens")[: int(further)]:
            measured[f"{name} of decoder_model_portable"] = reference[name].copy()
    for name in rng.permutation(sorted(measured))[: int(rng.integers(0, 6))]:
        measured[name] = changed(measured[name], rng)
    if not rng.integers(4):
        (measured if rng.integers(2) else reference).pop(str(rng.choice(list(reference))))
    if rng.integers(2):
        other = [np.arange(columns) + columns if row else np.sort(rng.permutation(tokens)[:keep])] * units
        measured["kept_indices"] = np.concatenate(other).astype(np.int64)
    known = UnitScores((tokens,) * units, (columns,) * units if row else None)
    return reference, measured, known if rng.integers(5) else None


def changed(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    kind = int(rng.integers(6))
    flat = array.reshape(-1).copy()
    place = int(rng.integers(flat.size))
    if kind == 0:
        return array[..., :-1]
    if kind == 1:
        return np.concatenate([array, array])
    if array.dtype == np.int64:
        flat[place] += int(rng.choice([-100, -1, 1, 1000]))
    elif kind == 2:
        flat[place] = rng.choice([np.nan, np.inf, -np.inf, 0.0])
    elif kind == 3:
        flat[:] = 0
    else:
        flat *= np.float32(1 + 10.0 ** -int(rng.integers(2, 8)))
    return flat.reshape(array.shape)


def random_precisions(rng: np.random.Generator) -> Costs:
    graphs = (
        "vision_encoder",
        "vision_encoder_fopru",
        "embed_tokens",
        "decoder_model_merged",
        "decoder_model_portable",
    )
    given = {graph: str(rng.choice(["fp32", "fp32", "fp16", "int4"])) for graph in graphs}
    names = [stage.name for stage in STAGES]
    costs = {name: float(10.0 ** rng.integers(-8, 2)) for name in rng.permutation(names)[:5]}
    return given, [None, {}, {"costs": costs}][int(rng.integers(3))]


def assert_same_report(found: dict[str, Any], expected: dict[str, Any], difference: float) -> None:
    """Equal but for `difference`, relative, of the numbers that were measured."""
    assert found.keys() == expected.keys()
    assert (found["ok"], found["first_divergence"]) == (expected["ok"], expected["first_divergence"])
    assert [stage["name"] for stage in found["stages"]] == [stage["name"] for stage in expected["stages"]]
    for stage, wanted in zip(found["stages"], expected["stages"], strict=True):
        assert stage.keys() == wanted.keys()
        for name, value in wanted.items():
            if not isinstance(value, float):
                assert stage[name] == value, (wanted, stage)
            elif name in ("cosine", "gain", "chosen"):
                assert stage[name] == pytest.approx(value, rel=difference, abs=1e-7), (wanted, stage)
            else:
                assert stage[name] == pytest.approx(value, rel=difference, abs=1e-12), (wanted, stage)


def test_comparison_of_random_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    lines: list[str] = []
    expected: list[ParityReport | None] = []
    for number in range(120):
        reference, measured, units = random_case(rng)
        precisions, parity = random_precisions(rng)
        files = [tmp_path / f"{number}_{side}.npz" for side in ("reference", "measured")]
        for file, arrays in zip(files, (reference, measured), strict=True):
            np.savez(file, **arrays)  # type: ignore[arg-type]
        expected.append(report_of(reference, measured, units, (precisions, parity)))
        request = {
            "reference": str(files[0]),
            "measured": str(files[1]),
            "units": None if units is None else asdict(units),
            "precisions": precisions,
            "parity": parity,
        }
        lines.append(json.dumps(request))
    answers = probed(lines)
    for answer, report in zip(answers, expected, strict=True):
        assert "report" in answer, answer
        if report is None:
            continue
        assert_same_report(answer["report"], report.to_dict(), ROUNDING)
        assert answer["table"] == format_report(report)
    kinds = [kind(report) for report in expected if report is not None]
    assert len(kinds) > 90
    assert {"agrees", "differs", "near-tie"} <= set(kinds)


def report_of(
    reference: Arrays, measured: Arrays, units: UnitScores | None, costs: Costs
) -> ParityReport | None:
    """Python's report; None where arrays do not belong together in a way that it does not look for."""
    with np.errstate(all="ignore"):
        try:
            return judged(compare(reference, measured, units), *costs)
        except (KeyError, ValueError, IndexError):
            return None


def kind(report: ParityReport) -> str:
    if any(stage.detail.startswith("near-tie") for stage in report.stages):
        return "near-tie"
    return "agrees" if report.ok else "differs"


def probed(lines: Sequence[str]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [str(cpp_tool("probe_check"))],
        input="\n".join(lines) + "\n",
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("counts", "kept", "scores"),
    [([2**62, 2**62], 4, 8), ([-4, 8], 4, 8), ([4], 4, 8), ([], 4, 8), ([2, 2], 4, 3), ([2, 2], 0, 0)],
)
def test_golden_tensors_that_contradict_themselves(
    tmp_path: Path, counts: list[int], kept: int, scores: int
) -> None:
    """Counts, indices and scores of a damaged file: a difference, never a read outside."""
    own = {
        "kept_counts": np.array(counts, np.int64),
        "token_scores": np.zeros(scores, np.float32),
        "kept_indices": np.arange(kept, dtype=np.int64) * 2**40,
    }
    other = own | {"kept_indices": np.arange(kept, dtype=np.int64) + 1}
    for name, arrays in (("reference", own), ("measured", other)):
        np.savez(tmp_path / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    request = {
        "reference": str(tmp_path / "reference.npz"),
        "measured": str(tmp_path / "measured.npz"),
        "units": {"tokens": [4, 4], "columns": None},
        "precisions": {},
        "parity": None,
    }
    (answer,) = probed([json.dumps(request)])
    stages = {stage["name"]: stage for stage in answer["report"]["stages"]}
    assert stages["kept_indices"]["ok"] is (kept == 0)
    assert stages["kept_indices"]["chosen"] is None


# ---- the command ----


def assert_same_check(bundle: Path) -> None:
    """The verdicts, tolerances and words of Python; differences may be those of the same library run with
    other memory layouts: within a tenth of the tolerance of each other."""
    found = fopru_json("check", str(bundle), "--threads", "1")
    report = check_bundle(load_bundle(bundle), threads=1)
    expected = report.to_dict()
    assert found.pop("bundle") == str(bundle)
    for stage, wanted in zip(found["stages"], expected["stages"], strict=True):
        own, other = stage.pop("max_abs_diff"), wanted.pop("max_abs_diff")
        assert (own is None) == (other is None)
        if own is not None:
            assert abs(own - other) <= 0.1 * max(stage["tolerance"], 1e-30), (stage, own, other)
        if " costs " in wanted["detail"]:
            assert stage["detail"].split(" costs ")[0] == wanted["detail"].split(" costs ")[0]
            stage["detail"] = wanted["detail"]
    assert_same_report(found, expected, 1e-6)


@pytest.mark.parametrize("name", BUNDLES)
def test_same_report_as_python(name: str) -> None:
    assert_same_check(DATA / name)


@pytest.mark.parametrize("name", TOYS)
def test_same_report_as_python_for_other_layouts(tmp_path: Path, name: str) -> None:
    assert_same_check(write_toy_bundle(tmp_path / "toy", TOYS[name]))


def test_same_table_as_python(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(root), "--threads", "1"]) == 0
    done = fopru("check", str(root), "--threads", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, capsys.readouterr().out, "")


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_a_planted_difference_is_named(root: Path, tmp_path: Path, stage: str) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    file = copy / "golden" / "golden.npz"
    with np.load(file) as arrays:
        tensors = {name: arrays[name] for name in arrays.files}
    tensors[stage].reshape(-1)[0] += 1
    np.savez(file, **tensors)
    rehash(copy)
    done = fopru("check", str(copy), "--json")
    record = json.loads(done.stdout)
    assert (done.returncode, record["ok"], record["first_divergence"]) == (1, False, stage)
    expected = check_bundle(load_bundle(copy), threads=1).to_dict()
    assert record["stages"][0] == expected["stages"][0]
    assert [own["detail"] for own in record["stages"]] == [own["detail"] for own in expected["stages"]]


def edited(root: Path, target: Path, damage: str) -> str:
    """A copy with a damage; returns what the sentence says."""
    copy = Path(shutil.copytree(root, target))
    file, manifest = copy / "onnx" / "vision_encoder.onnx", copy / "bundle.json"
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        return f"{file} does not have the SHA-256 of bundle.json: copy the bundle again, it is damaged"
    if damage == "missing":
        file.unlink()
        return f"bundle {copy} lacks onnx/vision_encoder.onnx, so it was only copied in part: copy it again"
    if damage == "longer":
        file.write_bytes(content + b"\0")
        return f"has {len(content) + 1} bytes, but bundle.json says {len(content)}: copy the bundle again"
    if damage == "newer":
        record = json.loads(manifest.read_text(encoding="utf-8"))
        manifest.write_text(json.dumps(record | {"format_version": 99}), encoding="utf-8")
        return "99"
    if damage == "no golden":
        shutil.rmtree(copy / "golden")
        rehash(copy)
        return f"bundle {copy} has no golden/golden.json: rebuild the bundle"
    if damage == "golden":
        (copy / "golden" / "golden.npz").write_bytes(b"PK no archive")
        rehash(copy)
        return f"the golden tensors of {copy} cannot be read ("
    if damage == "record":
        (copy / "golden" / "golden.json").write_text('{"prompt": 1}', encoding="utf-8")
        rehash(copy)
        return 'golden/golden.json lacks the key "'
    manifest.unlink()
    return f"{copy} has no bundle.json, so it is not a bundle or was only half written: build it again"


@pytest.mark.parametrize(
    "damage", ["flipped", "missing", "longer", "newer", "no golden", "golden", "record", "no manifest"]
)
def test_damaged_bundles(root: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = edited(root, tmp_path / "copy", damage)
    done = fopru("check", str(tmp_path / "copy"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr
    assert main([str(tmp_path / "copy")]) == 2
    if damage != "golden":  # what zip readers say of damage is their own
        assert done.stderr == capsys.readouterr().err
