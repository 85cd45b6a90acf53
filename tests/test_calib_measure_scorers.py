"""Scores of other layers and aggregations: the tokens that a bundle built that way would keep."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import onnxruntime
import pytest

from calib.errors import RunError
from calib.measure import whole
from calib.measure.runner import SampleRunner, check_settings
from calib.measure.scorers import Scorers
from calib.measure.ways import Scoring
from calib.settings import Setting
from export.build import BuildOptions, build
from fopru_graph import PruneOptions
from runtime import NO_REUSE, Bundle, Generator, Request, contract, load_bundle
from tests.measuring import PROMPT, edited, noise, photo, repruned, sample_of, spec_of

Bundles = Callable[[str], Path]

CLIP = PruneOptions(prefix_tokens=0, special_tokens=1, grid=(4, 4))
INTERN = PruneOptions(special_tokens=1, grid=(4, 4), merge=2)
SMOL = PruneOptions(special_tokens=0, grid=(4, 4), merge=2)
QWEN = PruneOptions(special_tokens=0, merge=2, merge_order="packed")
OPTIONS = {
    "llava": CLIP,
    "llava_next": replace(CLIP, mask=True),
    "internvl": INTERN,
    "smolvlm": SMOL,
    "qwen2_5_vl": QWEN,
}
"""As the exporter has them, written down: `Scorers` reads them from the graph."""

CASES = [
    ("llava", "rank", 0, "col_mean"),
    ("llava", "cls", 1, "cls"),
    ("llava", "cls", 0, "cls"),
    ("llava", "rank", 1, "col_mean_patch"),
    ("llava_next", "cls", 2, "cls"),
    ("llava_next", "rank", 0, "col_mean"),
    ("internvl", "cls", 2, "cls"),
    ("internvl", "rank", 0, "col_mean_patch"),
    ("smolvlm", "rank", 0, "col_mean"),
    ("qwen2_5_vl", "rank", 1, "col_mean"),
]


@pytest.mark.parametrize(("family", "selector", "layer", "aggregation"), CASES)
def test_the_same_tokens_as_a_bundle_built_that_way(
    family: str, selector: str, layer: int, aggregation: str, family_bundle: Bundles, tmp_path: Path
) -> None:
    bundle = family_bundle(family)
    options = replace(OPTIONS[family], layer=layer, aggregation=aggregation)
    other = repruned(bundle, tmp_path / family, options)
    file = tmp_path / "photo.png"
    noise(70, 90).save(file)
    sample = sample_of(file)
    settings = [
        Setting(selector, ratio, layer, None if selector == "cls" else aggregation) for ratio in (0.7, 0.3)
    ]
    spec = spec_of(tmp_path / "work", bundle)
    assert check_settings(spec, settings) == {}
    records = SampleRunner(spec).run(sample, settings)
    generator = Generator(load_bundle(other), "onnxruntime", 1, NO_REUSE)
    for record in records:
        result = generator.generate(Request(PROMPT, (file,), ratio=record.setting.ratio, max_new_tokens=4))
        assert record.error is None
        assert record.kept == result.kept_indices[0]
        assert record.tokens == result.token_ids
        assert record.vision > 0.0


def test_the_same_tokens_as_a_bundle_that_was_exported(
    toy_checkpoint: Callable[[str], Path], toy_bundle_dir: Path, tmp_path: Path
) -> None:
    checkpoint = str(toy_checkpoint("clip-llama"))
    options = BuildOptions(checkpoint, tmp_path / "cls", ratio=0.3, aggregation="cls", layer=0)
    other = build(options).bundle
    file = tmp_path / "photo.png"
    noise(50, 50, seed=3).save(file)
    settings = [Setting("cls", 0.3, layer=0), Setting("row", 0.5, layer=0, aggregation="cls")]
    cls, row = SampleRunner(spec_of(tmp_path / "work", toy_bundle_dir)).run(sample_of(file), settings)
    own, same = SampleRunner(spec_of(tmp_path / "work", other)).run(
        sample_of(file), [Setting("cls", 0.3), Setting("row", 0.5)]
    )
    assert cls.kept == own.kept
    assert row.kept == same.kept
    assert (cls.tokens, row.tokens) == (own.tokens, same.tokens)


@pytest.mark.parametrize("family", sorted(OPTIONS))
def test_options_are_read_from_the_graph(family: str, family_bundle: Bundles) -> None:
    bundle = load_bundle(family_bundle(family))
    found, expected = Scorers(bundle).options, OPTIONS[family]
    assert (found.special_tokens, found.merge, found.merge_order, found.grid) == (
        expected.special_tokens,
        expected.merge,
        expected.merge_order,
        expected.grid,
    )
    pruning = bundle.manifest.pruning
    assert (found.layer, found.aggregation) == (pruning.layer, pruning.aggregation)


# The files


def opened(bundle: Bundle, work: Path) -> Path:
    """The graph of a scoring, made and opened; where it stays."""
    with Scorers(bundle).graph(Scoring(0, "cls"), work) as path:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert contract.TOKEN_SCORES in [each.name for each in session.get_outputs()]
        name = path.name
    # Others may be opening it at this moment, each in a folder of its own.
    (stays,) = (file for file in work.rglob(name) if not file.parent.name.startswith(".open-"))
    return stays


def test_graphs_are_made_once_and_share_the_weights(family_bundle: Bundles, tmp_path: Path) -> None:
    bundle = load_bundle(family_bundle("llava"))
    weights = bundle.path / contract.data_file(contract.VISION_ENCODER)
    with Scorers(bundle).graph(Scoring(0, "cls"), tmp_path) as path:
        assert (path.parent / weights.name).samefile(weights)
        assert path.stat().st_size < 300_000
    first = opened(bundle, tmp_path)
    made = first.stat().st_mtime_ns
    assert opened(bundle, tmp_path) == first
    assert first.stat().st_mtime_ns == made
    # Nothing else stays: other tools read no weights that have a second name.
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [first]
    assert weights.stat().st_nlink == 1


def test_second_names_of_a_killed_process_go(family_bundle: Bundles, tmp_path: Path) -> None:
    bundle = load_bundle(family_bundle("llava"))
    stays = opened(bundle, tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, used = (stays.parent / f".open-x-{pid}" for pid in (gone.pid, os.getppid()))
    for place in (left, used):
        place.mkdir()
    opened(bundle, tmp_path)
    assert not left.exists()
    assert used.exists()  # of a process that runs


def test_other_weights_make_other_graphs(family_bundle: Bundles, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(family_bundle("llava"), copy)
    data = copy / contract.data_file(contract.VISION_ENCODER)
    data.write_bytes(bytes(reversed(data.read_bytes())))
    edited(copy, copy)
    for number, bundle in enumerate((copy, family_bundle("llava"))):
        with Scorers(load_bundle(bundle)).graph(Scoring(0, "cls"), tmp_path / "work"):
            assert len(list((tmp_path / "work" / "score_graphs").iterdir())) == number + 1


def test_several_may_make_the_same_graph_at_once(family_bundle: Bundles, tmp_path: Path) -> None:
    bundle = load_bundle(family_bundle("llava"))
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: opened(bundle, tmp_path), range(4)))
    assert len(paths) == 1
    assert len(list(paths.pop().parent.iterdir())) == 1  # nothing half-written stays


def test_weights_are_copied_where_they_cannot_be_linked(
    family_bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_disk(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    bundle, setting = family_bundle("llava"), Setting("rank", 0.3, layer=0)
    (copied,) = SampleRunner(spec_of(tmp_path / "copied", bundle)).run(sample_of(photo()), [setting])
    monkeypatch.undo()
    (linked,) = SampleRunner(spec_of(tmp_path / "linked", bundle)).run(sample_of(photo()), [setting])
    assert copied.error is None
    assert (copied.kept, copied.tokens) == (linked.kept, linked.tokens)
    assert not [file for file in (tmp_path / "copied").rglob("*") if file.name.startswith(".")]


def test_half_a_copy_of_the_weights_does_not_stay_on_a_full_disk(
    family_bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    bundle = load_bundle(family_bundle("llava"))
    monkeypatch.setattr(os, "link", other_disk)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(
        RunError, match=r"cannot make a graph in .* \(No space left on device\): give another"
    ):
        opened(bundle, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_work_folder_that_cannot_be_written(family_bundle: Bundles, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.write_text("a file")
    with pytest.raises(RunError, match=r"cannot make a graph in .*work.*: give another folder for work"):
        opened(load_bundle(family_bundle("llava")), work)


def test_few_graphs_stay_open(
    family_bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "MOST_SCORERS", 1)
    runner = SampleRunner(spec_of(tmp_path, family_bundle("llava")))
    settings = [Setting("rank", 0.3, layer=0), Setting("cls", 0.3), Setting("rank", 0.3, layer=0)]
    first, other, again = runner.run(sample_of(photo()), settings)
    assert (first.kept, first.tokens) == (again.kept, again.tokens)
    assert other.error is None
    assert list(runner.bundle("")._scorers) == [Scoring(0, "col_mean")]


# What is refused


def test_a_pruned_graph_that_does_not_show_its_rules(family_bundle: Bundles, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(family_bundle("llava"), copy)
    pruned = copy / contract.graph_file(contract.VISION_ENCODER_FOPRU)
    model = ir.load(pruned)
    for node in model.graph:
        node.metadata_props.clear()
    ir.save(model, pruned)
    scorers = Scorers(load_bundle(edited(copy, copy)))
    sentence = (
        r"scores by nothing that is known, but its unpruned encoder would by ReduceMean, ReduceMean, Sl"
    )
    for refused in (scorers.check, lambda scoring: scorers.graph(scoring, tmp_path).__enter__()):
        with pytest.raises(RunError, match=sentence):
            refused(Scoring(0, "col_mean"))


def test_an_encoder_that_cannot_be_pruned_again(family_bundle: Bundles, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(family_bundle("llava"), copy)
    graphs = [
        copy / contract.graph_file(name) for name in (contract.VISION_ENCODER_FOPRU, contract.VISION_ENCODER)
    ]
    shutil.copyfile(*graphs)
    with pytest.raises(RunError, match=r"cannot be scored another way than it is \(.*\): compare selectors"):
        Scorers(load_bundle(edited(copy, copy))).check(Scoring(0, "col_mean"))


def sentence_of(setting: Setting, bundle: Path, backend: str = "onnxruntime") -> str | None:
    spec = replace(spec_of(Path("unused"), bundle), backend=backend)
    found = check_settings(spec, [setting])
    assert set(found) <= {setting}
    return found.get(setting)


@pytest.mark.parametrize(
    ("family", "setting", "sentence"),
    [
        (
            "smolvlm",
            Setting("cls", 0.3),
            "has no scores of layer 2 by cls (aggregation is 'cls', but this encoder has no CLS row",
        ),
        ("llava", Setting("rank", 0.3, layer=7), "has no scores of layer 7 by col_mean ("),
        ("qwen2_5_vl", Setting("rank", 0.3, layer=0), "it looks at windows of the image, name a layer"),
        (
            "llava",
            Setting("rank", 0.3, layer=-1),
            "layer is -1, but layers are counted from 0: give a number >= 0",
        ),
        (
            "llava",
            Setting("rank", 0.3, aggregation="max"),
            "aggregation is 'max', expected one of col_mean, col_mean_patch, cls",
        ),
        (
            "llava",
            Setting("cls", 0.3, aggregation="col_mean"),
            "selector 'cls' ranks by the class token, but aggregation is 'col_mean': use selector 'rank'",
        ),
        (
            "llava",
            Setting("random", 0.3, layer=1),
            "selector 'random' looks at no scores, but layer 1 is given: leave it out, or use one of rank",
        ),
        (
            "llava",
            Setting("resize", 0.3, aggregation="cls"),
            "selector 'resize' looks at no scores, but aggregation cls is given: leave it out",
        ),
        (
            "llava",
            Setting("rank", 0.3, precision="int8"),
            "precision is 'int8', expected one of '': give a bundle for it",
        ),
    ],
)
def test_settings_that_a_bundle_cannot_have(
    family: str, setting: Setting, sentence: str, family_bundle: Bundles
) -> None:
    found = sentence_of(setting, family_bundle(family))
    assert found is not None
    assert sentence in found


def test_tokens_without_a_grid(family_bundle: Bundles, tmp_path: Path) -> None:
    bundle = edited(family_bundle("llava"), tmp_path / "gridless", layout={"grid": None})
    assert sentence_of(Setting("rank", 0.3), bundle) is None
    row, resize = (sentence_of(Setting(name, 0.3), bundle) for name in ("row", "resize"))
    assert row == (
        "selector 'row' keeps whole rows of a grid, which this model's tokens do not make: use 'rank'"
    )
    assert resize is not None
    assert resize.startswith("selector 'resize' needs a grid, but the 16 tokens of this model make none")


def test_engines_that_are_built_beforehand(family_bundle: Bundles) -> None:
    bundle = family_bundle("llava")
    found = sentence_of(Setting("rank", 0.3, layer=0), bundle, "tensorrt")
    assert found is not None
    assert found.startswith(
        "backend tensorrt runs engines of the bundle's own graphs, which score by layer 1 and col_mean, not "
        "by layer 0 and col_mean: use onnxruntime or ort-cuda"
    )
    for setting in (
        Setting("rank", 0.3),
        Setting("row", 0.5),
        Setting("random", 0.3),
        Setting("resize", 0.3),
    ):
        assert sentence_of(setting, bundle, "tensorrt") is None
