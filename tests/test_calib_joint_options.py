"""Options of `python -m calib.joint`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from calib.errors import OptionError
from calib.joint.options import RATIOS, JointOptions, parse_joint_options
from calib.run_options import DEFAULT_PROMPT


def options(*more: str) -> JointOptions:
    return parse_joint_options(["bundles/b", "bundles/b-int4", "bundles/b-fp16", "--data", "photos", *more])


def test_defaults() -> None:
    parsed = options()
    assert (parsed.bundle, parsed.others) == (
        Path("bundles/b"),
        (Path("bundles/b-int4"), Path("bundles/b-fp16")),
    )
    assert parsed.limits.limits == {"agreement": 0.98}
    assert (parsed.ratios, parsed.prefer, parsed.prompt) == (RATIOS, "memory", DEFAULT_PROMPT)
    assert parsed.work == Path.cwd() / "bundles/b-joint"
    assert (parsed.dry_run, parsed.report, parsed.json) == (False, True, False)


def test_everything_can_be_said() -> None:
    parsed = options(
        "--min-agreement", "0.9", "--metric", "answer", "--max-ttft", "150ms", "--max-kv", "64MiB",
        "--max-weights", "500MiB", "--max-memory", "1GiB", "--ratios", "0.2,1,0.5,0.2", "--prefer", "ttft",
        "--samples", "60", "--dry-run",
    )  # fmt: skip
    assert parsed.limits.limits == {
        "agreement": 0.9,
        "ttft": 0.15,
        "kv": 64 << 20,
        "weights": 500 << 20,
        "memory": 1 << 30,
    }
    assert parsed.limits.metric == "answer"
    # Unpruned is measured anyway.
    assert (parsed.ratios, parsed.prefer, parsed.samples, parsed.dry_run) == ((0.5, 0.2), "ttft", 60, True)


def test_sizes_alone_ask_for_no_agreement() -> None:
    assert options("--max-memory", "1GB").limits.constraint is None
    assert options("--max-weights", "1GB", "--max-kv", "1MB").limits.limits == {"kv": 10**6, "weights": 10**9}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--prefer", "size"), "prefer is 'size', expected one of memory, ttft"),
        (("--max-weights", "500"), "max-weights is '500': give a number above 0 with a unit (B, kB,"),
        (("--max-memory", "1 TB"), "max-memory is '1 TB': give a number above 0 with a unit (B, kB,"),
        (("--max-kv", "64"), "max-kv is '64': give a number above 0 with a unit"),
        (("--ratios", "0"), "ratios has '0': give fractions of tokens kept in (0, 1]"),
        (("--min-agreement", "2"), "min-agreement is 2: give a fraction in (0, 1]"),
        (("--max-memory", "1GB", "--metric", "bleu"), "metric is 'bleu', expected one of"),
        (("--samples", "0"), "samples is 0: give at least 1"),
    ],
)
def test_refused(given: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(OptionError, match=re.escape(sentence)):
        options(*given)


def test_another_bundle_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse_joint_options(["bundles/b", "--data", "photos"])
    assert left.value.code == 2
    assert "the following arguments are required: OTHER" in capsys.readouterr().err
