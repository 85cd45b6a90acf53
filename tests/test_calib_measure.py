"""What measuring is made of: fidelity, ways, specs, pictures, and encodings that are made once."""

from __future__ import annotations

import io
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from calib.errors import OptionError
from calib.measure import whole
from calib.measure.encode import seed_of
from calib.measure.fidelity import divergence, is_correct, same_first
from calib.measure.pictures import open_picture
from calib.measure.spec import RunnerSpec
from calib.measure.ways import Scoring, Way, way_of
from calib.measure.whole import WARM_UPS, RememberingSpace
from calib.settings import Setting
from runtime.errors import ImageError
from runtime.manifest import PruningInfo
from runtime.rows import HostSpace, Output
from tests.measuring import noise, photo

ROOT = Path(__file__).resolve().parent.parent

# Fidelity

logits = st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=9)


@given(logits)
def test_equal_logits_do_not_diverge_at_all(values: list[float]) -> None:
    array = np.array(values, np.float32)
    assert divergence(array, array.copy()) == 0.0


@given(
    st.lists(st.tuples(st.floats(-20, 20, width=32), st.floats(-20, 20, width=32)), min_size=2, max_size=9)
)
def test_divergence_is_the_textbook_sum(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs, strict=True)

    def log_probabilities(values: tuple[float, ...]) -> list[float]:
        total = math.fsum(math.exp(value) for value in values)
        return [value - math.log(total) for value in values]

    p, q = log_probabilities(ours), log_probabilities(theirs)
    expected = math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    found = divergence(np.array(ours, np.float32), np.array(theirs, np.float32))
    assert found >= 0.0
    assert found == pytest.approx(expected, abs=1e-12)  # sums of at most nine float64 numbers below 40


def test_large_logits_do_not_overflow() -> None:
    reference, other = np.array([3e38, 0], np.float32), np.array([0, 3e38], np.float32)
    assert divergence(reference, other) == pytest.approx(3e38, rel=1e-6)  # float32 has 3e38 to 1e-7 of it


def test_tokens_that_are_ruled_out_do_not_hide_a_divergence() -> None:
    reference, other = np.array([1, 2], np.float32), np.array([5, -3], np.float32)
    ruled_out = np.array([-np.inf], np.float32)
    masked = divergence(np.append(reference, ruled_out), np.append(other, ruled_out))
    assert masked == divergence(reference, other) > 5
    assert divergence(np.append(reference, ruled_out), np.append(other, np.float32(-200))) == masked
    assert divergence(reference, np.array([1, -np.inf], np.float32)) == math.inf
    assert math.isnan(divergence(reference, np.array([1, np.nan], np.float32)))  # not the best there is


def test_the_first_of_equal_logits_counts() -> None:
    assert same_first(np.array([1, 3, 3], np.float32), np.array([0, 2, 1], np.float32))
    assert not same_first(np.array([1, 3, 3], np.float32), np.array([0, 1, 2], np.float32))


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("no", None, None),
        (" no\n", "no ", True),
        ("No", "no", False),
        ("no.", "no", False),
        ("", " ", True),
    ],
)
def test_an_answer_is_right_to_the_letter(text: str, answer: str | None, expected: bool | None) -> None:
    assert is_correct(text, answer) is expected


# Ways

OWN = PruningInfo("rank", "col_mean", 3, "one_pass", "early", "renumber", 0.3, None)
BY_CLS = PruningInfo("row", "cls", 3, "cls_row", "early", "renumber", 0.3, None)


@pytest.mark.parametrize(
    ("setting", "pruning", "expected"),
    [
        (Setting("none", 1.0), OWN, Way("unpruned", "none")),
        (Setting("resize", 0.3), OWN, Way("resize", "none")),
        (Setting("random", 0.3), OWN, Way("host", "random")),
        (Setting("uniform", 0.3), OWN, Way("host", "uniform")),
        (Setting("rank", 0.3), OWN, Way("graph", "graph")),
        (Setting("rank", 0.3, layer=3, aggregation="col_mean"), OWN, Way("graph", "graph")),
        (Setting("row", 0.3), OWN, Way("host", "row")),
        (Setting("row", 0.3), BY_CLS, Way("graph", "graph")),
        (Setting("rank", 0.3, layer=1), OWN, Way("host", "rank", Scoring(1, "col_mean"))),
        (Setting("row", 0.3, aggregation="cls"), OWN, Way("host", "row", Scoring(3, "cls"))),
        (Setting("cls", 0.3), OWN, Way("host", "rank", Scoring(3, "cls"))),
        (Setting("cls", 0.3, layer=0), OWN, Way("host", "rank", Scoring(0, "cls"))),
        (Setting("cls", 0.3), BY_CLS, Way("host", "rank")),
    ],
)
def test_a_setting_has_one_way(setting: Setting, pruning: PruningInfo, expected: Way) -> None:
    assert way_of(setting, pruning) == expected


def test_the_seed_of_a_sample_never_changes() -> None:
    # Written down: another number would make old results and new ones look comparable.
    assert seed_of(0, "a") == 1_740_032_305
    assert len({seed_of(seed, digest) for seed in range(9) for digest in ("a", "b")}) == 18
    assert all(0 <= seed_of(seed, "c") < 2**31 for seed in range(99))


# Specs


def spec(**changes: Any) -> RunnerSpec:
    values: dict[str, Any] = {
        "bundles": (("", Path("a")), ("int8", Path("b"))),
        "backend": "onnxruntime",
        "threads": None,
        "max_new_tokens": 8,
        "seed": 0,
        "work": Path("w"),
    }
    return RunnerSpec(**{**values, **changes})


def test_a_spec_travels() -> None:
    assert pickle.loads(pickle.dumps(spec())) == spec()
    assert spec().path("int8") == Path("b")


@pytest.mark.parametrize("labels", [[], ["int8"], ["", "a", "a"]])
def test_labels_name_the_calibrated_bundle_first(labels: list[str]) -> None:
    with pytest.raises(
        OptionError, match=r"the labels of the bundles are \[.*\], expected '' for the bundle"
    ):
        spec(bundles=tuple((label, Path("a")) for label in labels))


def test_what_a_spec_refuses() -> None:
    with pytest.raises(OptionError, match=r"backend is 'native', which answers whole requests"):
        spec(backend="native")
    with pytest.raises(OptionError, match=r"max_new_tokens is 0: give at least 1"):
        spec(max_new_tokens=0)
    with pytest.raises(OptionError, match=r"precision is 'int4', expected one of '', 'int8': give a bundle"):
        spec().path("int4")


# Pictures


def test_a_picture_from_bytes_is_that_of_its_file(tmp_path: Path) -> None:
    picture = noise(9, 7)
    rotated = picture.getexif()
    rotated[274] = 6  # a quarter turn
    file = tmp_path / "a.png"
    picture.save(file, exif=rotated)
    ours, theirs = open_picture(file), open_picture(file.read_bytes())
    assert ours.size == theirs.size == (9, 7)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_damaged_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"^7 bytes of the data are not an image that Pillow can read"):
        open_picture(b"no more")
    whole_file = photo()
    with pytest.raises(
        ImageError, match=r"bytes of the data cannot be read as an image \(.*\): they are dam"
    ):
        open_picture(whole_file[: len(whole_file) // 2])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(ImageError, match=r"an image of the data is too large to open safely"):
        open_picture(whole_file)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_damaged_avif() -> None:
    stream = io.BytesIO()
    noise(64, 64).save(stream, "AVIF")
    content = bytearray(stream.getvalue())
    start = content.index(b"mdat") + 4
    content[start : start + 64] = bytes(64)
    with pytest.raises(RuntimeError), Image.open(io.BytesIO(content)) as opened:
        opened.load()
    with pytest.raises(
        ImageError, match=r"bytes of the data cannot be read as an image \(.*\): they are dam"
    ):
        open_picture(bytes(content))


def test_gray_and_palettes_become_rgb() -> None:
    for mode in ("L", "P", "RGBA"):
        stream = io.BytesIO()
        noise(4, 4).convert(mode).save(stream, "PNG")
        assert open_picture(stream.getvalue()).mode == "RGB"


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = ("PIL", "onnx_ir", "onnx", "onnxruntime", "tokenizers", "torch", "export")
    code = f"import sys, calib.measure.runner; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Encodings that are made once


class FakeSession:
    """Doubles `x`; runs take one tick of the clock, the first two of a session ten."""

    inputs: Mapping[str, tuple[int | None, ...]] = {"x": (None,)}
    outputs: Mapping[str, tuple[int | None, ...]] = {"y": (None,)}

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.runs = 0

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        assert list(feeds) == ["x"]  # `num_keep` is not one of its inputs
        self.runs += 1
        self.clock.now += 10.0 if self.runs <= WARM_UPS else 1.0
        return {"y": 2 * feeds["x"]}

    def bind(self, inputs: Any, outputs: Any) -> Any:
        raise NotImplementedError


class Clock:
    """Stands still but for the runs of `FakeSession`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(whole, "time", made)
    return made


def timed(space: RememberingSpace, clock: Clock, call: Callable[[], Any]) -> float:
    """Seconds as they are charged to a setting."""
    start, spared = clock.now, space.spared
    call()
    return clock.now - start + space.spared - spared


def test_each_setting_is_charged_with_one_warm_run(clock: Clock) -> None:
    space, session = RememberingSpace(HostSpace()), FakeSession(clock)
    outputs = {"y": Output((2,), "float32", True), "kept_indices": Output((2,), "int64", False)}

    def run(value: float) -> Any:
        feeds = {"x": np.array([value, 1.0], np.float32), "num_keep": np.array([2])}
        return space.run(session, feeds, outputs)()["y"].tolist()

    assert timed(space, clock, lambda: run(3.0)) == 1.0  # two warm-ups of ten ticks are left out
    assert session.runs == WARM_UPS + 1
    assert timed(space, clock, lambda: run(3.0)) == 1.0  # remembered
    assert session.runs == WARM_UPS + 1
    assert run(3.0) == [6.0, 2.0]
    assert run(4.0) == [8.0, 2.0]  # other numbers, another run, no warm-up
    assert session.runs == WARM_UPS + 2
    space.forget()
    assert timed(space, clock, lambda: run(3.0)) == 1.0
    assert session.runs == WARM_UPS + 3


def test_two_graphs_do_not_share_what_they_made(clock: Clock) -> None:
    space, one, two = RememberingSpace(HostSpace()), FakeSession(clock), FakeSession(clock)
    feeds = {"x": np.ones(2, np.float32)}
    space.run(one, feeds, {})
    space.run(two, feeds, {})
    assert (one.runs, two.runs) == (WARM_UPS + 1, WARM_UPS + 1)
