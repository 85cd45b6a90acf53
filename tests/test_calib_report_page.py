"""The page of the report: whole, safe with what users write, and the same for equal studies."""

from __future__ import annotations

import base64
import importlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from calib.data.sample import Data, Skipped
from calib.errors import RunError
from calib.report import Pictures, write_report
from calib.settings import REFERENCE, Setting
from calib.study import Study
from runtime.errors import BackendError
from tests.calib_studies import PICKED, record, sample, study, summaries, summary
from tests.toy_bundle import write_toy_bundle

VOID = ("meta", "link", "img", "source", "br")


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """For tests that look at the plots."""
    return Pictures(write_toy_bundle(tmp_path_factory.mktemp("report") / "toy"), scored=2)


@pytest.fixture
def pictures(drawing: Pictures, monkeypatch: pytest.MonkeyPatch) -> Pictures:
    """For tests that do not: curves, which take a second to draw, are always the same."""
    for name in ("ratio_plot", "cost_plot"):
        monkeypatch.setattr(f"calib.report.charts.{name}", lambda *_, **__: b"\x89PNG")
    return drawing


class Page(HTMLParser):
    """A page taken apart; fails where tags do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All that a reader sees."""
        return re.sub(r"\s+", " ", " ".join(self.texts))  # also blanks that do not break

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(folder: Path, own: Study, pictures: Pictures) -> Page:
    path = write_report(folder, own, pictures)
    assert path == folder / "report.html"
    return Page(path)


def test_the_page_needs_nothing_else(tmp_path: Path, drawing: Pictures) -> None:
    page = written(tmp_path, study(), drawing)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    sources = [image["src"] for image in page.all("img")] + [image["srcset"] for image in page.all("source")]
    assert len(sources) > 10
    assert all(source is not None and source.startswith("data:image/") for source in sources)
    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    outside = re.sub(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", "", raw)
    assert "http://" not in outside
    assert "https://" not in outside
    assert "url(" not in outside
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_plots_of_the_page_lie_beside_it(tmp_path: Path, drawing: Pictures) -> None:
    page = written(tmp_path, study(), drawing)
    shown = {
        base64.b64decode(source.removeprefix("data:image/png;base64,"))
        for image in page.all("img")
        if (source := image["src"]) is not None and source.startswith("data:image/png")
    }
    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert sorted(files) == [
        "accuracy.png", "agreement.png", "agreement_kv.png", "agreement_near.png", "agreement_ttft.png",
        "kept_1.png", "scores.png",
    ]  # fmt: skip
    assert set(files.values()) == shown
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*files, "report.html"])
    assert len(page.all("source")) == len(files)  # each has a form for the dark


def test_a_reader_finds_the_answer_first_and_where_it_comes_from_last(
    tmp_path: Path, pictures: Pictures
) -> None:
    own = study(notes=("uniform is better than rank",))
    text = written(tmp_path, own, pictures).text
    order = [
        "Keep 50 % of the visual tokens",
        "It is not accuracy",
        "Uniform is better than rank.",
        "At the next lower ratio, 0.25, it is 0.920.",
        "First-token agreement is 0.960, at least 0.940.",
        "How much survives",
        "Where the kept tokens lie",
        "What was thrown away",
        "Everything that was measured",
        "How to read it",
        "on the machine that measured (Linux x86_64)",
        "Where it comes from",
        "numpy 2.0",
        "python -m calib.ratio bundle --data photos",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_equal_studies_make_equal_files(tmp_path: Path, drawing: Pictures) -> None:
    for name in ("one", "two"):
        write_report(tmp_path / name, study(), drawing)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")
    )
    assert first == second


def test_what_users_write_is_text(tmp_path: Path, pictures: Pictures) -> None:
    evil = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"
    changed = sample(0, name=f"{evil}.png", prompt=evil, answer=evil)
    records = (
        record(changed, REFERENCE, text=evil),
        record(changed, PICKED, text=evil, same_answer=False),
        record(changed, Setting("row", 0.5), error=evil),
    )
    own = study(
        samples=(changed,),
        data=Data(evil, (changed,), (Skipped(evil, evil),)),
        records=records,
        constraint=evil,
        command=evil,
        versions={evil: evil},
        facts={"name": evil, "machine": evil, evil: [evil, {evil: evil}]},
        notes=(evil,),
    )
    assert own.pick is not None
    own = replace(own, pick=replace(own.pick, reasons=(evil,), notes=(evil,), rebuild=evil))
    page = written(tmp_path, own, pictures)
    assert not page.all("script")
    assert all("onerror" not in image for image in page.all("img"))
    assert page.text.count(evil) >= 15


def test_text_of_every_script_and_bytes_that_are_none(tmp_path: Path, pictures: Pictures) -> None:
    odd = sample(
        0, name="photo\udcff.png", prompt="ما هو الرقم؟ 😀 \x00\x1b[31m \u202e txt", answer="سبعة\n٧"
    )
    page = written(tmp_path, study(samples=(odd,)), pictures)
    assert "photo\N{REPLACEMENT CHARACTER}.png" in page.text
    assert "ما هو الرقم؟ 😀 \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[31m \u202e txt" in page.text
    assert "سبعة ٧" in page.text
    shown = [attributes for tag, attributes in page.tags if tag == "dd" and attributes.get("dir") == "auto"]
    assert len(shown) == 5  # name, prompt, two answers, the right answer


def test_long_prompts_are_cut(tmp_path: Path, pictures: Pictures) -> None:
    page = written(tmp_path, study(samples=(sample(0, prompt="x" * 200_000),)), pictures)
    assert f"{'x' * 600} … (200,000 characters in all)" in page.text
    assert "x" * 601 not in page.text


def test_samples_whose_answer_changed(tmp_path: Path, pictures: Pictures) -> None:
    shown = tuple(sample(number) for number in range(9))
    records = [record(each, REFERENCE, text="four") for each in shown]
    records += [
        record(
            each,
            PICKED,
            text="four" if number < 2 else "five",
            same_answer=number < 2,
            divergence=number / 10,
        )
        for number, each in enumerate(shown)
    ]
    page = written(tmp_path, study(samples=shown, records=tuple(records)), pictures)
    assert (
        "7 of 9 answers differ from the unpruned model's, rank, 50 % kept. These 6 diverge most." in page.text
    )
    assert page.text.count("five") == 7  # six of the worst, one of the usual ones
    assert page.text.count("photo_8.png") == 1
    assert "0.8 nats" in page.text
    changed = [
        attributes for tag, attributes in page.tags if tag == "dd" and attributes.get("class") == "changed"
    ]
    assert len(changed) == 7
    same = written(tmp_path, study(), pictures)
    assert "No answer changed: all 3 are, to the last token, those of the unpruned model." in same.text


def test_pictures_that_are_gone_leave_the_page_whole(tmp_path: Path, pictures: Pictures) -> None:
    gone = sample(0, images=(tmp_path / "gone.png",))
    page = written(tmp_path / "report", study(samples=(gone,)), pictures)
    assert "no picture of photo_0.png can be shown" in page.text
    assert "the figures are not affected" in page.text
    assert not (tmp_path / "report" / "kept_1.png").exists()


def test_a_setting_that_chooses_nothing_has_no_pictures(tmp_path: Path, pictures: Pictures) -> None:
    small = Setting("resize", 0.5)
    own = study()
    assert own.pick is not None
    records = tuple(record(each, setting) for each in own.data.samples for setting in (REFERENCE, small))
    page = written(tmp_path, replace(own, pick=replace(own.pick, setting=small), records=records), pictures)
    assert "The setting resize, 50 % selects no tokens, so nothing can be marked." in page.text
    assert "Where the kept tokens lie" not in page.text
    textual = sample(0, images=())
    records = (record(textual, REFERENCE), record(textual, PICKED, kept=()))
    page = written(tmp_path, study(samples=(textual,), records=records), pictures)
    assert "This sample has no picture." in page.text


def test_nothing_picked(tmp_path: Path, pictures: Pictures) -> None:
    shown = (sample(0),)
    best = Setting("rank", 0.79)
    records = tuple(record(shown[0], setting) for setting in (REFERENCE, best))
    page = written(tmp_path, study(samples=shown, pick=None, records=records), pictures)
    assert (
        "Nothing that was measured meets the constraint: first-token agreement of at least 0.9." in page.text
    )
    assert "The best that was measured, rank, 79 % kept:" in page.text
    assert "Why this ratio" not in page.text
    (answer,) = [
        attributes for tag, attributes in page.tags if attributes.get("class", "") == "answer nothing"
    ]
    assert answer


def test_nothing_measured_but_the_unpruned_model(tmp_path: Path, pictures: Pictures) -> None:
    shown = (sample(0),)
    own = study(
        samples=shown,
        pick=None,
        records=(record(shown[0], REFERENCE),),
        summaries={REFERENCE: summary(1.0, 1.0)},
    )
    page = written(tmp_path, own, pictures)
    assert "What was thrown away" not in page.text
    assert "Everything that was measured" in page.text


def test_unlabelled_data_makes_no_statement_about_accuracy(tmp_path: Path, pictures: Pictures) -> None:
    found = {setting: replace(one, accuracy=None, samples=1) for setting, one in summaries(("rank",)).items()}
    own = study(samples=(sample(0, answer=None),), summaries=found)
    page = written(tmp_path, own, pictures)
    assert "so this page makes no statement about accuracy" in page.text
    assert "right answer" not in page.text.replace("right answers", "")
    assert "1 sample)" in page.text
    labelled = written(tmp_path, study(), pictures)
    assert "no statement about accuracy" not in labelled.text
    assert "right answer 4" in labelled.text


def test_what_is_left_out_is_listed_with_its_reason(tmp_path: Path, pictures: Pictures) -> None:
    own = study()
    skipped = tuple(Skipped(f"rows.jsonl:{n}", f"reason {n}") for n in range(203))
    failed = tuple(record(each, Setting("row", 0.5), error="the graph failed") for each in own.data.samples)
    own = replace(own, data=replace(own.data, skipped=skipped), records=own.records + failed)
    page = written(tmp_path, own, pictures)
    assert "203 rows of the data could not be used" in page.text
    assert "rows.jsonl:199 reason 199" in page.text
    assert "reason 200" not in page.text
    assert "… and 3 more." in page.text
    assert "photo_2.png, row, 50 % the graph failed" in page.text
    assert (
        "1 row of the data"
        in written(tmp_path, replace(own, data=replace(own.data, skipped=skipped[:1])), pictures).text
    )


def test_facts_are_readable(tmp_path: Path, pictures: Pictures) -> None:
    facts = {"name": "toy", "seed": 5, "threads": None, "default_ratio": 0.3, "sizes": [1, 2]}
    own = study(facts={**facts, "precisions": {"": {"decoder": "fp32"}, "int8": {"decoder": "int4"}}})
    text = written(tmp_path, own, pictures).text
    assert "default ratio 0.3" in text
    assert "threads" not in text
    assert "precisions decoder fp32, int8 decoder int4" in text
    assert "sizes 1, 2" in text
    assert "seed 0" in text
    assert "seed 5" not in text
    assert "3, of 3 different pictures or sets of pictures" in text


def test_plots_of_an_earlier_report_do_not_stay(tmp_path: Path, pictures: Pictures) -> None:
    write_report(tmp_path, study(), pictures)
    (tmp_path / "mine.png").write_bytes(b"mine")
    bare = {setting: replace(found, accuracy=None) for setting, found in summaries().items()}
    write_report(tmp_path, study(summaries=bare, pick=None, records=(), limits={}), pictures)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [
        "agreement.png", "agreement_kv.png", "agreement_ttft.png", "mine.png", "report.html", "scores.png",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written(tmp_path: Path, pictures: Pictures) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        RunError, match=r"cannot write the report to .*file \(.*\): make room, or give another"
    ):
        write_report(tmp_path / "file", study(), pictures)


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_a_missing_package_is_a_sentence(
    module: str, tmp_path: Path, drawing: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> object:
        if name.split(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr("runtime.lazy.importlib.import_module", missing)
    with pytest.raises(BackendError, match=rf"needs the package {module}.*pip install 'fopru-edge\[calib\]'"):
        write_report(tmp_path / "report", study(), drawing)
    assert not (tmp_path / "report").exists()
