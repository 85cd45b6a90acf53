"""`python -m calib.ratio`, from the command line to the bundle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calib.errors import OptionError
from calib.locked import open_locked
from calib.ratio.__main__ import main
from calib.ratio.options import DEFAULT_PROMPT, parse_options
from calib.record import Record
from calib.settings import Setting
from calib.sweep import Sweep
from runtime.bundle import load_bundle
from runtime.check import main as check
from tests.interruptible import INTERRUPTIBLE
from tests.toy_bundle import ToyModel, write_photos, write_toy_bundle

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("--prompt", "which one", "--max-new-tokens", "2", "--no-report")
MEETS = ("--ratios", "0.75,0.5,0.25", "--min-agreement", "0.01", "--metric", "first")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_toy_bundle(tmp_path / "toy", ToyModel())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "pictures")


def default_of(bundle: Path) -> float | None:
    return load_bundle(bundle).manifest.pruning.default_ratio


def run(bundle: Path, data: Path, *more: str) -> int:
    return main([str(bundle), "--data", str(data), *QUICK, *more])


# --- options


def options(*more: str) -> Any:
    return parse_options(["bundles/b", "--data", "photos", *more])


def test_defaults() -> None:
    parsed = options()
    assert str(parsed.constraint) == "first-token agreement of at least 0.98"
    assert (parsed.prompt, parsed.selectors, parsed.ratios, parsed.search) == (DEFAULT_PROMPT, None, None, ())
    assert parsed.work == Path.cwd() / "bundles/b-calibration"
    assert (parsed.seed, parsed.max_new_tokens, parsed.workers, parsed.threads) == (0, 32, None, None)
    assert (parsed.fresh, parsed.dry_run, parsed.json, parsed.report) == (False, False, False, True)


def test_everything_can_be_said() -> None:
    parsed = options(
        "--min-agreement", "0.9", "--metric", "answer", "--max-ttft", "150ms", "--max-kv", "64MiB",
        "--selectors", "rank,resize", "--ratios", "0.5, 0.3", "--search", "layer,aggregation",
        "--layers", "3,5", "--work", "w", "--workers", "2", "--no-report",
    )  # fmt: skip
    assert parsed.constraint.limits == {"agreement": 0.9, "ttft": 0.15, "kv": 64 << 20}
    assert (parsed.selectors, parsed.ratios) == (("rank", "resize"), (0.5, 0.3))
    assert (parsed.search, parsed.layers) == (("layer", "aggregation"), (3, 5))
    assert (parsed.work, parsed.workers, parsed.report) == (Path("w"), 2, False)


def test_a_budget_alone_asks_for_no_agreement() -> None:
    assert options("--max-kv", "1MB").constraint.limits == {"kv": 10**6}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ("--selectors", "rank,best"),
            "selectors has 'best', expected some of rank, row, cls, random, uniform",
        ),
        (("--search", "depth"), "search has 'depth', expected some of layer, aggregation"),
        (("--ratios", "0.5,2"), "ratios has '2': give fractions of tokens kept in (0, 1], as 0.5,0.3,0.2"),
        (("--ratios", "half"), "ratios has 'half': give fractions of tokens kept in (0, 1]"),
        (("--layers", "3"), "--layers names candidates of a search over layers: add --search layer"),
        (("--search", "layer", "--layers", "-1"), "layers has '-1': give 0-based encoder layers, as 3,5,7"),
        (("--samples", "0"), "samples is 0: give at least 1"),
        (("--max-new-tokens", "0"), "max-new-tokens is 0: give at least 1"),
        (("--threads", "0"), "threads is 0: give at least 1"),
        (("--workers", "0"), "workers is 0: give at least 1"),
        (("--seed", "-1"), "seed is -1: give 0 or more"),
        (("--prompts", "p.txt", "--prompt", "x"), "--prompt and --prompts both say what is asked: leave one"),
        (("--min-agreement", "98"), "min-agreement is 98: give a fraction in (0, 1], e.g. 0.98"),
        (("--metric", "bleu"), "metric is 'bleu', expected one of first, answer, accuracy"),
        (("--max-ttft", "150"), "max-ttft is '150': give a number above 0 with a unit (ms, s), as 150ms"),
        (("--max-kv", "64"), "max-kv is '64': give a number above 0 with a unit"),
    ],
)
def test_refused_options(given: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(OptionError, match=re.escape(sentence)):
        options(*given)


def test_an_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(tmp_path / "none"), "--data", "x", "--seed", "-1"]) == 2
    assert capsys.readouterr().err == "error: seed is -1: give 0 or more\n"
    assert main([str(tmp_path / "none"), "--data", "x"]) == 2
    assert capsys.readouterr().err.startswith(f"error: there is no bundle at {tmp_path / 'none'}: build one")


# --- the whole way


def test_pick_is_written_and_the_bundle_still_holds(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert default_of(bundle) == 0.5
    assert run(bundle, pictures, *MEETS) == 0
    shown = capsys.readouterr()
    assert default_of(bundle) == 0.25
    assert "picked: rank at 0.25" in shown.out
    assert "because rank at 0.25 keeps 16 -> 4 visual tokens" in shown.out
    assert f"{bundle} now keeps 0.25 by default (before: 0.5)" in shown.out
    for selector in ("unpruned", "rank", "row", "random", "uniform", "resize"):
        assert re.search(rf"^ *{selector} ", shown.out, re.MULTILINE), selector
    assert "note: resize is a stand-in: this vision encoder takes pictures of one size only" in shown.out
    assert re.search(r"^ *rank +0\.25 +4 +16 +4 +\d\.\d{3} \[", shown.out, re.MULTILINE)
    assert "4 samples x 16 settings, ratios 0.75, 0.5, 0.25" in shown.err
    work = bundle.with_name("toy-calibration")
    assert sorted(path.name for path in work.iterdir()) == ["calibration.json", "results.arrow"]
    record = json.loads((work / "calibration.json").read_text())
    assert (record["default_ratio"], record["bundle"]["default_ratio"]) == (0.25, 0.5)  # now, and before
    assert record["pick"]["setting"]["ratio"] == 0.25
    assert record["command"].startswith("python -m calib.ratio ")
    assert check([str(bundle)]) == 0  # golden tensors have their own ratio


def test_a_second_run_measures_nothing_and_a_dry_run_writes_nothing(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(bundle, pictures, *MEETS, "--dry-run", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert (default_of(bundle), first["default_ratio"]) == (0.5, None)
    results = (bundle.with_name("toy-calibration") / "results.arrow").read_bytes()
    monkeypatch.setattr(os, "access", lambda *_: False)  # a bundle that may not be written
    assert run(bundle, pictures, *MEETS, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == first
    assert (bundle.with_name("toy-calibration") / "results.arrow").read_bytes() == results
    assert run(bundle, pictures, *MEETS) == 2
    assert "may not be written, so the ratio cannot become the bundle's default" in capsys.readouterr().err


def test_writing_the_default_does_not_make_results_stale(bundle: Path, pictures: Path) -> None:
    assert run(bundle, pictures, *MEETS) == 0
    results = (bundle.with_name("toy-calibration") / "results.arrow").read_bytes()
    assert run(bundle, pictures, *MEETS) == 0
    assert (bundle.with_name("toy-calibration") / "results.arrow").read_bytes() == results


def test_other_options_do_not_mix_with_earlier_results(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, pictures, *MEETS) == 0
    assert run(bundle, pictures, *MEETS, "--seed", "5") == 2
    assert "seed" in capsys.readouterr().err
    assert run(bundle, pictures, *MEETS, "--seed", "5", "--fresh") == 0


def test_nothing_meets(bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle, pictures, "--ratios", "0.5", "--max-kv", "1B") == 1
    shown = capsys.readouterr().out
    assert "nothing was picked" in shown
    assert (
        "nothing that was tried meets the constraint (at most 1 B of KV cache); closest is rank at 0.5"
        in shown
    )
    assert f"{bundle} is as it was" in shown
    assert default_of(bundle) == 0.5


def test_an_unavailable_selector_is_a_note_or_if_asked_for_an_error(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, pictures, *MEETS) == 0
    assert "note: cls is not shown: the vision encoder of" in capsys.readouterr().out
    assert run(bundle, pictures, *MEETS, "--selectors", "cls") == 2
    assert "error: selector cls cannot be measured: the vision encoder of" in capsys.readouterr().err
    assert run(bundle, pictures, *MEETS, "--search", "layer", "--layers", "7") == 2
    shown = capsys.readouterr().err
    assert "error: layer 7 cannot score: " in shown
    assert "samples x" not in shown  # before anything is measured


def test_baselines_are_measured_whatever_was_asked(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, pictures, *MEETS, "--selectors", "random", "--json") == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert {entry["setting"]["selector"] for entry in settings} == {
        "none",
        "rank",
        "random",
        "uniform",
        "resize",
    }


def test_accuracy_needs_labels(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(bundle, pictures, "--metric", "accuracy") == 2
    assert f"metric is accuracy, but no sample of {pictures} has an answer" in capsys.readouterr().err
    rows = [{"image": f"pictures/{place}.png", "prompt": "a", "answer": "b"} for place in range(4)]
    labelled = tmp_path / "rows.jsonl"
    labelled.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--data", str(labelled), "--ratios", "0.5", "--metric", "accuracy", "--no-report"]
    assert main([str(bundle), *arguments, "--max-new-tokens", "1"]) == 0  # both are always wrong
    shown = capsys.readouterr().out
    assert "accuracy differs from the unpruned model's by +0.000, and the 95 % interval begins" in shown
    assert re.search(r"first token +answer +right +KL", shown)


def test_skipped_rows_are_counted_listed_and_kept(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in range(7):
        (pictures / f"bad{place}.png").write_text("no picture")
    assert run(bundle, pictures, *MEETS) == 0
    shown = capsys.readouterr()
    where = bundle.with_name("toy-calibration") / "skipped.txt"
    assert "skipped, as they cannot be used: 7 rows; samples left: 4\n  bad0.png: " in shown.err
    assert f"  and 2 more, all of them in {where}\n" in shown.err
    assert len(where.read_text().splitlines()) == 7
    assert "note: skipped rows of the data, which cannot be used: 7" in shown.out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--backend", "nonsense"), 'backend is "nonsense", expected one of'),
        (("--backend", "ort-cuda"), "ort-cuda needs CUDAExecutionProvider"),
        (("--ray", "auto"), "this needs the package ray, which is not installed"),
    ],
)
def test_results_stay_where_nothing_can_be_measured(
    bundle: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, str],
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    work = bundle.with_name("toy-calibration")
    assert run(bundle, pictures, *given) == 2
    assert message in capsys.readouterr().err
    assert not work.exists()
    assert run(bundle, pictures, *MEETS) == 0
    before = (work / "results.arrow").read_bytes()
    assert run(bundle, pictures, *given, "--fresh") == 2
    assert (work / "results.arrow").read_bytes() == before


def test_fresh_takes_nothing_from_a_run_that_writes(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, pictures, *MEETS) == 0
    results = bundle.with_name("toy-calibration") / "results.arrow"
    before = results.read_bytes()
    with open_locked(results):
        assert run(bundle, pictures, *MEETS, "--fresh") == 2
    assert "error: another run writes to" in capsys.readouterr().err
    assert results.read_bytes() == before


def test_a_work_folder_that_cannot_be_made(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert run(bundle, pictures, "--work", str(tmp_path / "file" / "work")) == 2
    assert re.search(
        r"error: .*work cannot be written \(.*\): give another folder with --work", capsys.readouterr().err
    )


@pytest.mark.parametrize("what", ["data", "bundle"])
def test_results_are_written_neither_among_the_pictures_nor_into_the_bundle(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    work = (pictures if what == "data" else bundle) / "work"
    assert run(bundle, pictures, "--work", str(work)) == 2
    assert capsys.readouterr().err == (
        f"error: results would be written to {work}, which is inside the {what}: give another folder with "
        "--work\n"
    )
    assert not work.exists()


def test_results_may_lie_beside_a_jsonl_file(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"image": str(pictures / "0.png")}))
    assert run(bundle, rows, *MEETS, "--work", str(tmp_path)) == 0


def test_ctrl_c_keeps_what_was_measured_and_the_next_run_goes_on(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure: Callable[..., list[Record]] = Sweep.measure
    rounds: list[int] = []

    def interrupted(self: Sweep, settings: Sequence[Setting], progress: Any = None) -> list[Record]:
        rounds.append(len(settings))
        measure(self, list(settings)[: len(settings) // 2], progress)
        raise KeyboardInterrupt

    monkeypatch.setattr(Sweep, "measure", interrupted)
    assert run(bundle, pictures, *MEETS) == 130
    results = bundle.with_name("toy-calibration") / "results.arrow"
    assert f"stopped: what was measured is kept in {results}, run again to go on" in capsys.readouterr().err
    assert rounds == [16]
    kept = results.read_bytes()
    assert default_of(bundle) == 0.5
    monkeypatch.setattr(Sweep, "measure", measure)
    assert run(bundle, pictures, *MEETS) == 0
    assert results.read_bytes().startswith(kept)
    assert default_of(bundle) == 0.25


def test_ctrl_c_before_anything_was_opened(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("calib.ratio.__main__.load_bundle", stop)
    assert run(bundle, pictures) == 130
    assert capsys.readouterr().err == "stopped: nothing new was measured\n"


def test_two_workers_find_what_one_does(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = []
    for workers in ("1", "2"):
        work = str(tmp_path / workers)
        assert run(bundle, pictures, *MEETS, "--json", "--dry-run", "--workers", workers, "--work", work) == 0
        found.append(json.loads(capsys.readouterr().out))
    one, two = found
    assert one["pick"]["setting"] == two["pick"]["setting"]
    for first, second in zip(one["settings"], two["settings"], strict=True):
        times = ("ttft", "ttft_quartiles")
        assert {k: v for k, v in first.items() if k not in times} == {
            k: v for k, v in second.items() if k not in times
        }
    several = [note for note in two["notes"] if note.startswith("several workers measured at once")]
    assert len(several) == 1
    assert [note for note in two["notes"] if note not in several] == one["notes"]


@pytest.mark.parametrize(("module", "package"), [("scipy.stats", "scipy"), ("matplotlib", "matplotlib")])
def test_a_missing_package_is_said_before_anything_is_measured(
    bundle: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main([str(bundle), "--data", str(pictures)]) == 2
    sentence = (
        f"error: this needs the package {package}, which is not installed: pip install 'fopru-edge[calib]'"
    )
    assert sentence in capsys.readouterr().err
    assert not bundle.with_name("toy-calibration").exists()


def test_the_report_is_written_and_named(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument for argument in QUICK if argument != "--no-report"]
    assert main([str(bundle), "--data", str(pictures), *arguments, *MEETS]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("report: ")]
    page = Path(line.removeprefix("report: "))
    assert page.parent == bundle.with_name("toy-calibration")
    assert "rank" in page.read_text()


def test_a_real_interrupt_ends_a_real_process(bundle: Path, pictures: Path) -> None:
    for place in range(400):  # minutes of work
        Image.fromarray(np.full((8, 8, 3), place % 256, np.uint8)).save(pictures / f"more{place}.png")
    command = [*INTERRUPTIBLE, sys.executable, "-m", "calib.ratio", str(bundle), "--data", str(pictures)]
    results = bundle.with_name("toy-calibration") / "results.arrow"
    process = subprocess.Popen([*command, *QUICK], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (results.exists() and results.stat().st_size > 50_000):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith(f"stopped: what was measured is kept in {results}, run again to go on\n")


def test_importing_needs_numpy_alone() -> None:
    heavy = (
        "torch",
        "onnxruntime",
        "pyarrow",
        "scipy",
        "matplotlib",
        "jinja2",
        "PIL",
        "datasets",
        "ray",
        "rich",
    )
    code = f"import sys, calib.ratio.__main__; print([m for m in {(*heavy, 'onnx_ir')} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
