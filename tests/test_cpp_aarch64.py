"""`fopru`, cross-built for aarch64 and run by qemu with ONNX Runtime for aarch64, against Python here.

The nearest thing to a Jetson or a Raspberry Pi that needs neither. `make ort-aarch64` fetches the library;
FOPRU_ORT_AARCH64 names another. Where the compiler, qemu or the library is missing the tests skip, but fail
with FOPRU_REQUIRE_CPP=1 and FOPRU_REQUIRE_AARCH64=1.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export import build
from runtime.__main__ import main
from runtime.version import __version__
from tests.cpp_build import aarch64_tool, need_cpp
from tests.fetch_ort_aarch64 import NAME, VERSION

ROOT = Path(__file__).resolve().parent.parent
FROZEN = ("bundle_v1", "bundle_v2", "bundle_v2_tiles", "bundle_v3")
SYSROOT = Path("/usr/aarch64-linux-gnu")
PROMPT = "Read the digits from left to right."
# ONNX Runtime looks at /proc and /sys, where qemu shows the machine below.
EMULATED = "onnxruntime cpuid_info warning: Unknown CPU vendor. cpuinfo_vendor value: 0\n"
MEASURED = ("timings", "peak_rss_bytes", "tokens_per_second")


@dataclass(frozen=True)
class Machine:
    """What runs programs of aarch64."""

    qemu: str
    fopru: Path
    library: Path

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """`fopru` with these arguments."""
        # The loader of the cross compiler must not take another C library: then a thread hangs as it starts.
        emulator = [self.qemu, "-L", str(SYSROOT), "-E", f"LD_LIBRARY_PATH={SYSROOT}/lib"]
        done = subprocess.run(
            [*emulator, str(self.fopru), *args],
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "FOPRU_ORT_LIB": str(self.library)},
            check=False,
            timeout=120,
        )
        done.stderr = done.stderr.replace(EMULATED, "")
        return done

    def json(self, *args: str) -> dict[str, Any]:
        """What it prints with --json."""
        done = self.run(*args, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        record: dict[str, Any] = json.loads(done.stdout)
        return record


def missing(qemu: str | None, library: Path) -> str:
    """What to do before these tests can run; empty where nothing is missing."""
    if shutil.which("aarch64-linux-gnu-g++") is None:
        return "install g++-aarch64-linux-gnu (Debian)"
    if not (SYSROOT / "lib" / "ld-linux-aarch64.so.1").exists():
        return f"{SYSROOT} has no C library: install libc6-dev-arm64-cross (Debian)"
    if not Path("/usr/lib/aarch64-linux-gnu/libpcre2-8.a").exists():
        names = "libpcre2-dev libutf8proc-dev libjpeg62-turbo-dev zlib1g-dev"
        return f"dpkg --add-architecture arm64, and install for arm64 {names} (Debian)"
    if qemu is None:
        return "install qemu-user (Debian)"
    if not library.is_file():
        return f"{library} is missing: run `make ort-aarch64`, or set FOPRU_ORT_AARCH64 to {NAME} for aarch64"
    return ""


@pytest.fixture(scope="module")
def machine() -> Machine:
    need_cpp()
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    given = os.environ.get("FOPRU_ORT_AARCH64")
    library = Path(given) if given else ROOT / "build" / "ort-aarch64" / VERSION / NAME
    reason = missing(qemu, library)
    if reason and os.environ.get("FOPRU_REQUIRE_CPP") == os.environ.get("FOPRU_REQUIRE_AARCH64") == "1":
        pytest.fail(f"nothing of aarch64 can run here, and FOPRU_REQUIRE_AARCH64=1: {reason}")
    if reason or qemu is None:
        pytest.skip(f"nothing of aarch64 can run here: {reason}")
    return Machine(qemu, aarch64_tool("fopru"), library)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("demo") / "checkpoint"
    assert build.main(["--ratio", "0.3", "--output", str(target)]) == 0
    return target


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC).save(path, quality=85)
    return path


def assert_same_answer(machine: Machine, capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """Tokens, text, kept patches and counts are exact; there are no floats but what is measured."""
    assert main([*args, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    found = machine.json("run", *args)
    assert list(found) == list(expected)
    for name in MEASURED:
        del found[name], expected[name]
    assert found == expected
    return found


def test_programs_are_of_aarch64(machine: Machine) -> None:
    head = machine.fopru.read_bytes()[:20]
    assert head[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", head, 18) == (183,)  # EM_AARCH64


def test_versions(machine: Machine) -> None:
    done = machine.run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert __version__ in done.stdout
    libraries = machine.json("info", str(ROOT / "tests" / "data" / "bundle_v3"))["libraries"]
    print(done.stdout.strip(), libraries)
    assert libraries["fopru"] == __version__
    assert libraries["onnxruntime"]["path"] == str(machine.library)


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_bundles_answer_as_on_this_machine(
    machine: Machine, photo: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    bundle = str(ROOT / "tests" / "data" / name)
    base = (bundle, "--image", str(photo), "--prompt", "What is this?", "--threads", "1")
    assert_same_answer(machine, capsys, *base, "--max-new-tokens", "8")
    sampled = ("--temperature", "1.2", "--seed", "7", "--top-p", "0.9")
    assert_same_answer(machine, capsys, *base, "--max-new-tokens", "6", "--ratio", "0.5", *sampled)


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_bundles_replay_their_golden_tensors(machine: Machine, name: str) -> None:
    assert_golden(machine, ROOT / "tests" / "data" / name)


def test_half_precision(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CPU computes in float16 (Cortex-A76 and later), ONNX Runtime does so with such graphs, else
    in float32 as on x86. Then the encoder costs what the build measured; the former costs more, which
    `check` holds to the floor of fp16."""
    bundle = ROOT / "tests" / "data" / "bundle_v3_q4"
    monkeypatch.setenv("QEMU_CPU", "cortex-a72")
    assert_golden(machine, bundle)
    monkeypatch.setenv("QEMU_CPU", "neoverse-n1")
    stages = {stage["name"]: stage for stage in machine.json("check", str(bundle))["stages"]}
    for name in ("image_features", "token_scores", "pruned_features"):
        stage = stages[name]
        assert stage["reason"].startswith("fp16: beyond the build, as float16 sums may be")
        # 4.3 with ONNX Runtime 1.24: 11 bits in each sum. The floor is a hundred times as far.
        assert stage["max_abs_diff"] / stage["tolerance"] < 8
        assert stage["cosine"] > 0.9999


def test_the_demo_bundle(machine: Machine, demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_golden(machine, demo)
    for picture, ratio in (("three_digits", "0.3"), ("four_digits", "1"), ("one_digit", "0.1")):
        image = str(ROOT / "demo" / "images" / f"{picture}.png")
        args = (str(demo), "--image", image, "--prompt", PROMPT, "--ratio", ratio, "--threads", "1")
        found = assert_same_answer(machine, capsys, *args)
        assert ratio != "0.3" or found["text"].strip() == "7 5 2"


def assert_golden(machine: Machine, bundle: Path) -> None:
    """`fopru check`, with the tolerances of every machine: sums in ONNX Runtime's kernels for NEON go in
    another order than for AVX, so floats differ in their last bits."""
    report = machine.json("check", str(bundle))
    assert report["ok"]
    assert {stage["name"] for stage in report["stages"] if not stage["ok"]} == set()
    assert sum(not stage["skipped"] for stage in report["stages"]) >= 4
