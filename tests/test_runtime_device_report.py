"""`python -m runtime.device_report`: what it asks of a machine, its arithmetic, a whole report on the CPU."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

from runtime.bundle import load_bundle
from runtime.device_report import __main__ as command
from runtime.device_report import machine, measure, record
from runtime.device_report.machine import MemoryReader, find_machine, meminfo
from runtime.device_report.measure import (
    ALLOWED_GROWTH,
    Plan,
    growth,
    kept_agreement,
    loop_ratios,
    measure_backend,
    request_of,
    stage_of,
    steady_growth,
)
from runtime.device_report.page import page_of
from runtime.device_report.record import BackendRecord, Loop, Memory, Refusal, Report
from runtime.errors import BackendError, BundleError
from runtime.generator import Generator
from runtime.tensorrt.identity import Probe
from tests.toy_bundle import ToyModel, write_toy_bundle

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "docs" / "device_report.schema.json").read_text())
MEMORY = Memory(1 << 20, 2 << 20, 3 << 20, None)
QUICK = ["--runs", "2", "--warmup", "1", "--new-tokens", "4", "--requests", "20", "--threads", "1"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy", ToyModel())


@pytest.fixture(scope="module")
def report(toy_bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on the CPU."""
    folder = tmp_path_factory.mktemp("reports") / "new" / "report"
    arguments = [str(toy_bundle_dir), "--backend", "onnxruntime", "--output", str(folder), *QUICK]
    code = command.main([*arguments, "--ratio", "1", "--ratio", "0.3"])
    assert code == 0, (folder / "report.md").read_text()
    return folder


def probe(root: Path, files: dict[str, str], tools: dict[str, str] | None = None) -> Probe:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    def run(line: Sequence[str]) -> str | None:
        return (tools or {}).get(line[0])

    return Probe(root, run, lambda: None)


def test_a_jetson(tmp_path: Path) -> None:
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
        "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
        "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}',
        "proc/meminfo": "MemTotal: 7990000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 4000000 kB\n"
        "CmaTotal:         262144 kB\nCmaFree:          200000 kB\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "46531\n",
        "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "",
    }
    tools = {"nvpmodel": "NV Power Mode: MAXN_SUPER\n2\n", "dpkg-query": "10.3.0.30-1+cuda12.5"}
    found = find_machine(probe(tmp_path, files, tools))
    assert found.model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert found.system.startswith("Ubuntu 22.04.5 LTS, ")
    assert (found.gpu, found.compute_capability) == ("orin", "8.7")
    assert (found.jetpack, found.l4t, found.cuda) == ("6.2", "36.4.3", "12.6.68")
    assert (found.tensorrt, found.power_mode, found.driver) == ("10.3.0", "MAXN_SUPER", None)
    expected = {"total": 7990000, "available": 6000000, "swap": 4000000, "cma": 262144, "cma_free": 200000}
    assert found.memory == {name: 1024 * kilobytes for name, kilobytes in expected.items()}
    assert found.temperatures == {"cpu-thermal": 46.531}  # a sensor that is off says nothing


def test_a_server(tmp_path: Path) -> None:
    smi = "NVIDIA H200, 9.0, 570.86.15, 143771 MiB\n"
    files = {"proc/cpuinfo": "processor: 0\nmodel name\t: Some CPU\n", "proc/meminfo": "MemTotal: 10 kB\n"}
    found = find_machine(probe(tmp_path, files, {"nvidia-smi": smi}))
    assert (found.model, found.gpu, found.compute_capability) == ("Some CPU", "NVIDIA H200", "9.0")
    assert (found.driver, found.tensorrt, found.jetpack) == ("570.86.15", None, None)
    assert found.memory == {"total": 10240, "gpu": 143771 << 20}


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    found = find_machine(probe(tmp_path, {}, {"nvidia-smi": "NVIDIA-SMI has failed\n"}))
    assert found.model  # of Python's platform
    assert (found.gpu, found.cuda, found.power_mode, found.memory) == (None, None, None, {})
    assert {"fopru-edge", "numpy"} <= set(found.versions)


def test_the_cuda_of_a_driver(tmp_path: Path) -> None:
    table = "| NVIDIA-SMI 570.86.15    Driver Version: 570.86.15    CUDA Version: 12.8  |"
    assert find_machine(probe(tmp_path, {}, {"nvidia-smi": table})).cuda == "12.8 (driver)"


def test_memory_of_this_process() -> None:
    reader = MemoryReader()
    before = reader.read()
    if before.rss is None:
        pytest.skip("this system has no /proc")
    with mmap.mmap(-1, 64 << 20) as block:  # malloc could hand out pages that an earlier test had touched
        block.write(b"\1" * len(block))
        after = reader.read()
    assert after.rss is not None
    assert after.rss - before.rss > 0.9 * (64 << 20)
    assert after.peak_rss is not None
    assert after.peak_rss >= after.rss
    assert after.available == pytest.approx(meminfo(Probe())["MemAvailable"], rel=0.2)  # others work too


def test_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Device:
        def __init__(self, _: object) -> None:
            pass

        def memory(self) -> tuple[int, int]:
            return 3000, 10000

    monkeypatch.setattr(machine, "load_cudart", lambda: None)
    monkeypatch.setattr(machine, "CudaCopies", Device)
    assert MemoryReader(probe(tmp_path, {})).read() == Memory(None, None, None, 7000)

    pool = SimpleNamespace(allocated=2000)
    assert MemoryReader(probe(tmp_path, {}), pool).read() == Memory(None, None, None, 7000, 2000)

    def refuse() -> None:
        raise BackendError("none")

    monkeypatch.setattr(machine, "load_cudart", refuse)
    assert MemoryReader(probe(tmp_path, {})).read().device is None


def test_stages_by_hand() -> None:
    # numpy's percentile of 1..21 at 95 %: the 20th of 21
    assert stage_of([float(n) for n in range(21, 0, -1)]) == record.Stage(11.0, 20.0, 1.0)
    assert stage_of([2.0]) == record.Stage(2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([5, 9, 4, 9], 0),
        ([5, 6, 7, 8], 2),
        ([5, 9, 4, 3, 2], -5),  # the half in the middle counts as late
        ([5, None], None),
        ([5], None),
        ([], None),
    ],
)
def test_growth_by_hand(samples: list[int | None], expected: int | None) -> None:
    assert growth(samples) == expected


def noisy(count: int) -> list[int]:
    """Use of a device without a leak: more for greater ratios, in every round of 16."""
    return [1000 + 10 * (number % 16) for number in range(count)]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (noisy(1000), 0),
        ([use + number for number, use in enumerate(noisy(1024))], 896),  # 128 more in each of 7 steps
        # Another process takes 5000 once: in the middle of the loop, or of a window, or gives it back.
        ([use + 5000 * (number >= 512) for number, use in enumerate(noisy(1024))], 0),
        ([use + 5000 * (number >= 570) for number, use in enumerate(noisy(1024))], 0),
        ([use - 900 * (number >= 300) for number, use in enumerate(noisy(1024))], 0),
        # For a while: two steps of seven.
        ([use + 5000 * (200 <= number < 700) for number, use in enumerate(noisy(1024))], 0),
        # That does not hide a leak.
        ([use + number - 9000 * (number >= 512) for number, use in enumerate(noisy(1024))], 896),
        ([use + number for number, use in enumerate(noisy(96))], 80),  # six windows of a round
        ([5, 9, 4, 9], -1),  # two windows
        ([5, None], None),
        ([5], None),
        ([], None),
    ],
)
def test_growth_that_goes_on_by_hand(samples: list[int | None], expected: int | None) -> None:
    assert steady_growth(samples) == expected


def test_the_loop_tells_a_leak_from_another_process(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan((), 1, 1, 3, 128, 1)

    def found(device: Callable[[int], int], pool: Callable[[int], int]) -> Loop:
        reads: list[int] = []

        def read(self: MemoryReader) -> Memory:
            reads.append(len(reads))
            return Memory(1 << 20, 2 << 20, None, device(reads[-1]), pool(reads[-1]))

        monkeypatch.setattr(MemoryReader, "read", read)
        loop = measure_backend(load_bundle(toy), "onnxruntime", plan, lambda _: None).loop
        assert loop is not None
        return loop

    once = found(lambda number: (number > 70) << 30, lambda _: 7)
    assert (once.growth_device, once.growth_buffers, once.ok) == (0, 0, True)
    assert once.most_device == 1 << 30
    leak = found(lambda number: number << 20, lambda _: 7)
    assert (leak.growth_device, leak.ok) == (7 * 16 << 20, False)
    buffers = found(lambda _: 5, lambda number: (number > 70) << 30)
    assert (buffers.growth_device, buffers.growth_buffers, buffers.ok) == (0, 1 << 30, False)


def test_agreement_of_kept_tokens_by_hand() -> None:
    reference = {"kept_counts": np.array([2, 3]), "kept_indices": np.array([0, 5, 0, 1, 2])}
    # The first unit has 5 in another place of the list, the second keeps 7 in place of 2.
    other = {"kept_counts": np.array([2, 3]), "kept_indices": np.array([0, 5, 0, 1, 7])}
    assert kept_agreement(reference, reference) == 1.0
    assert kept_agreement(reference, other) == 0.8
    shifted = {"kept_counts": np.array([2, 3]), "kept_indices": np.array([0, 1, 0, 2, 5])}
    assert kept_agreement(reference, shifted) == 0.6  # not 1: tokens count in their own unit
    assert kept_agreement(reference, {**other, "kept_counts": np.array([3, 2])}) is None
    assert kept_agreement({}, other) is None


def test_ratios_of_the_requests() -> None:
    ratios = loop_ratios(40)
    assert len(ratios) == 40
    assert sorted(ratios[:16]) == sorted(ratios[16:32])
    assert ratios[:16] != ratios[16:32]
    assert (min(ratios), max(ratios), len(set(ratios))) == (0.05, 1.0, 16)
    assert loop_ratios(40) == ratios  # the same for every report
    assert loop_ratios(0) == []


def loop(**changes: Any) -> Loop:
    return replace(Loop(1000, 16, 9.0, 0, None, None, None, ALLOWED_GROWTH, 0, MEMORY), **changes)


@pytest.mark.parametrize(
    ("changes", "ok"),
    [
        ({}, True),
        ({"growth_rss": ALLOWED_GROWTH}, True),
        ({"growth_rss": None}, True),
        ({"growth_rss": ALLOWED_GROWTH + 1}, False),
        ({"growth_device": ALLOWED_GROWTH + 1}, False),
        ({"growth_buffers": ALLOWED_GROWTH + 1}, False),
        ({"growth_buffers": ALLOWED_GROWTH, "growth_device": -ALLOWED_GROWTH}, True),
        ({"changed_answers": 1}, False),
    ],
)
def test_when_requests_in_a_row_pass(changes: dict[str, Any], ok: bool) -> None:
    assert loop(**changes).ok == ok


def test_when_a_backend_passes() -> None:
    good = BackendRecord("a", parity={"ok": True}, loop=loop())
    assert good.ok
    assert not replace(good, parity=None).ok
    assert not replace(good, parity={"ok": False}).ok
    assert not replace(good, loop=loop(changed_answers=3)).ok
    assert not replace(good, refusals=(Refusal("ratio 1", "no engine"),)).ok


def test_the_schema_has_every_field() -> None:
    named = {"Report": SCHEMA, **SCHEMA["$defs"]}
    for name, schema in named.items():
        cls = getattr(record, name)
        assert is_dataclass(cls)
        own = {field.name for field in fields(cls)} | ({"ok"} if cls is Report else set())
        assert set(schema["properties"]) == set(schema["required"]) == own, name
        assert schema["additionalProperties"] is False
    missing = [
        name for name in record.__all__ if isinstance(getattr(record, name), type) and name not in named
    ]
    assert missing == []


def test_a_report_on_the_cpu(report: Path, toy_bundle_dir: Path) -> None:
    content = json.loads((report / "report.json").read_text())
    jsonschema.validate(content, SCHEMA)
    assert content["ok"]
    (backend,) = content["backends"]
    assert backend["parity"]["ok"]
    assert backend["kept_agreement"] == 1.0
    assert backend["refusals"] == []
    bundle = load_bundle(toy_bundle_dir)
    assert content["prompt"] == request_of(bundle)[0]
    whole, pruned = backend["levels"]
    assert (whole["ratio"], pruned["ratio"]) == (1.0, 0.3)
    assert whole["visual_after"] == whole["visual_before"] > pruned["visual_after"] > 0
    assert pruned["kv"] < pruned["kv_unpruned"] == whole["kv"]
    for level in (whole, pruned):
        assert (level["runs"], level["new_tokens"], level["same_answer"]) == (2, 4, True)
        parts = [level["stages"][name]["least"] for name in ("preprocess", "vision", "embed", "prefill")]
        assert 0 < sum(parts) <= level["stages"]["ttft"]["p95"]
        assert level["first"] > level["load"] > 0
    assert backend["loop"]["requests"] == 20
    assert backend["loop"]["changed_answers"] == 0
    others = {each["what"] for each in content["not_run"]}
    assert {"openvino"} <= others
    assert "onnxruntime" not in others


def test_its_page(report: Path) -> None:
    page = (report / "report.md").read_text()
    assert page.startswith("# ")
    assert "## onnxruntime" in page
    assert "| kept_indices | 0.0e+00 | exact | ok |" in page
    assert "20 requests with 16 changing ratios" in page
    assert "not asked for: add --backend openvino" in page
    assert sorted(path.name for path in report.iterdir()) == ["report.json", "report.md"]
    for line in page.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def test_a_bundle_without_a_golden_request(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise BundleError("there is none")

    monkeypatch.setattr(measure, "load_record", refuse)
    monkeypatch.setattr(measure, "load_golden", refuse)
    saved: list[BackendRecord] = []
    plan = Plan((0.5,), 1, 1, 3, 0, 1)
    found = measure_backend(load_bundle(toy), "onnxruntime", plan, saved.append)
    assert found.levels[0].visual_after == 8
    assert found.refusals == (Refusal("parity with the golden tensors", "there is none"),)
    assert found.loop is None
    assert not found.ok
    assert [len(each.levels) for each in saved] == [1, 1]


def test_what_fails_is_said_and_the_rest_goes_on(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Generator.generate

    def generate(self: Generator, request: Any, encoded: Any = ()) -> Any:
        if request.ratio is not None and request.ratio > 0.6:
            raise BackendError("the engine takes 9 tokens at most")
        return plain(self, request, encoded)

    monkeypatch.setattr(Generator, "generate", generate)
    plan = Plan((1.0, 0.5), 1, 1, 3, 18, 1)
    found = measure_backend(load_bundle(toy), "onnxruntime", plan, lambda _: None)
    assert [level.ratio for level in found.levels] == [0.5]
    assert found.loop is not None
    assert (found.loop.requests, found.loop.ratios) == (18, 9)  # of 16 ratios from .05 to 1, those to .6
    assert [each.what for each in found.refusals] == [
        "ratio 1",
        "ratios 0.62, 0.683, 0.747, 0.81, 0.873, 0.937, 1 among 18 requests in a row",
    ]
    assert {each.why for each in found.refusals} == {"the engine takes 9 tokens at most"}
    page = page_of(_report(found))
    assert "DOES NOT PASS" in page
    assert "| ratio 1 | the engine takes 9 tokens at most |" in page


def test_requests_in_a_row_that_all_fail(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(*_: Any) -> None:
        raise BackendError("no")

    monkeypatch.setattr(Generator, "generate", generate)
    found = measure_backend(load_bundle(toy), "onnxruntime", Plan((0.5,), 1, 1, 3, 5, 1), lambda _: None)
    assert [each.what for each in found.refusals][:2] == ["ratio 0.5", "5 requests in a row"]


def _report(*backends: BackendRecord) -> Report:
    bundle = record.BundleRecord("toy", "toy", "Toy", "0" * 64, 1 << 20, 0.3, {"decoder": "fp32"})
    return Report("now", "command", find_machine(), bundle, "a | b?", backends, ())


def test_a_page_without_backends() -> None:
    page = page_of(_report())
    assert "No backend ran: see below." in page
    assert "a / b?" in page  # a bar would end the cell


def test_a_page_with_all_that_can_be_wrong() -> None:
    stages = {
        name: record.Stage(1.0, 2.0, 0.5) for name in ("preprocess", "vision", "embed", "prefill", "ttft")
    }
    level = record.Level(0.3, 3, 2, 10, 3, 12, 4, stages, 5.0, 4.0, None, 10, 20, False, MEMORY)
    parity = {
        "ok": False,
        "first_divergence": "logits",
        "stages": [
            {
                "name": "logits",
                "max_abs_diff": None,
                "tolerance": 0.5,
                "ok": False,
                "skipped": False,
                "detail": "x",
            }
        ],
    }
    backend = BackendRecord(
        "a", levels=(level,), parity=parity, loop=loop(growth_device=5 << 30, changed_answers=7),
        placement={"decoder": {"CUDAExecutionProvider": {"MatMul": 3, "Add": 4}}},
    )  # fmt: skip
    page = page_of(_report(backend))
    assert "The answers of the runs differ from each other at ratio 0.3." in page
    assert "first stage that diverges: logits" in page
    assert "| logits | - | 5.0e-01 | DIFFERS | x |" in page
    assert "7 answered otherwise than before" in page
    assert (
        "the process needed 0.0 MiB more RSS than in the first; the use of the whole device, which other "
        in page
    )
    assert (
        "processes share, went on rising by 5.00 GiB (what was taken once does not count) (allowed: 16"
        in page
    )
    assert "- nodes of decoder: CUDAExecutionProvider 7" in page
    assert "1000.0 / 2000.0" in page  # milliseconds


def test_a_backend_that_is_not_there(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("onnxruntime", "ort-cuda")
    monkeypatch.setattr(command, "available_backends", lambda: names)
    lines = ["Loading ...", "error: ort-cuda needs an NVIDIA GPU"]
    done = subprocess.CompletedProcess([], 3, "", "\n".join(lines))
    asked = []

    def run(line: list[str], **_: Any) -> Any:
        asked.append(line[line.index("--backend") + 1])
        return done

    monkeypatch.setattr(command.subprocess, "run", run)
    assert command.main([str(toy), "--output", str(tmp_path / "out"), *QUICK]) == 1
    assert asked == ["ort-cuda", "onnxruntime"]  # the CPU where no GPU is
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    jsonschema.validate(content, SCHEMA)
    assert content["backends"] == []
    assert {each["why"] for each in content["not_run"]} == {"ort-cuda needs an NVIDIA GPU"}


@pytest.mark.parametrize(("saved", "place"), [(True, "backends"), (False, "not_run")])
def test_a_process_that_the_system_ends(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool, place: str
) -> None:
    def run(line: list[str], **_: Any) -> Any:
        if saved:
            file = Path(line[line.index("--child") + 1])
            file.write_text(json.dumps(BackendRecord("onnxruntime").to_dict()))
        return subprocess.CompletedProcess([], -signal.SIGKILL, "", "")

    monkeypatch.setattr(command.subprocess, "run", run)
    code = command.main([str(toy), "--backend", "onnxruntime", "--output", str(tmp_path / "out"), *QUICK])
    assert code == 1
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    (entry,) = [each for each in content[place] if "not asked" not in each.get("why", "")]
    (refusal,) = entry["refusals"] if saved else [entry]
    assert refusal["why"].startswith(
        "its process was ended by signal 9 (which Linux does when memory runs out"
    )


def test_the_rest_after_an_error_is_kept() -> None:
    assert command._reason(2, "error: the bundle is damaged") == "the bundle is damaged"
    assert "signal 11; it said: boom" in command._reason(-11, "boom")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "0"], "--runs is 0, expected 1 or more: leave it out for the default"),
        (["--new-tokens", "-1"], "--new-tokens is -1, expected 1 or more"),
        (["--requests", "-1"], "--requests is -1, expected 0 or more"),
        (["--ratio", "1.5"], r"--ratio is 1.5, expected a fraction kept in \(0, 1\]"),
        (["--backend", "abacus"], 'backend is "abacus", expected one of onnxruntime, '),
    ],
)
def test_arguments_that_are_wrong(
    toy: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(toy), *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message.replace("\\", "") in shown


def test_a_folder_that_cannot_be_written(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 3, "", "error: no")
    monkeypatch.setattr(command.subprocess, "run", lambda *_, **__: done)
    (tmp_path / "out").write_text("a file")
    assert command.main([str(toy), "--backend", "onnxruntime", "--output", str(tmp_path / "out")]) == 2


def test_what_the_children_are_told(toy: Path, tmp_path: Path) -> None:
    bundle = load_bundle(toy)
    plan = Plan((0.3, 1.0), 5, 1, 7, 9, None)
    arguments = command._child_arguments(bundle, "ort-cuda", plan, tmp_path / "record.json")
    args = command._parser().parse_args(arguments)
    assert command._plan(args) == plan
    assert (args.bundle, args.backend, args.child) == (str(toy), ["ort-cuda"], str(tmp_path / "record.json"))


def test_the_tests_of_a_gpu_skip_with_a_sentence_without_one() -> None:
    line = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-rs", "-p", "no:cacheprovider"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert "skipped" in summary
    assert "passed" not in summary
    reasons = [text for text in done.stdout.splitlines() if text.startswith("SKIPPED")]
    for name in ("tensorrt", "ort-tensorrt", "ort-cuda"):
        assert any(f": {name}: " in text for text in reasons), reasons
