"""The C++ runtime with the sanitizers of addresses, undefined behaviour and threads, on ONNX Runtime."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cpp_build import cpp_tool
from tests.cpp_command import cpp_environment

DATA = Path(__file__).parent / "data"
ROUNDS = 24


def run(sanitize: str, name: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Fails where a sanitizer reports anything; skips where ThreadSanitizer itself cannot start."""
    environment = {
        **cpp_environment(),
        "FOPRU_REQUIRE_ORT": "1",
        "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "second_deadlock_stack=1",
    }
    done = subprocess.run(
        [str(cpp_tool(name, sanitize)), *args],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=300,
    )
    if "unexpected memory mapping" in done.stderr:  # nothing that could be installed
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    assert "Sanitizer" not in done.stderr
    return done


def test_unit_tests_touch_only_their_own_memory() -> None:
    done = run("address,undefined", "fopru_tests")
    found = re.search(r"test cases: *(\d+) \| *(\d+) passed \| 0 failed", done.stdout)
    assert found, done.stdout[-2000:]
    assert int(found[1]) >= 90


@pytest.mark.parametrize("sanitize", ["address,undefined", "thread"])
@pytest.mark.parametrize("bundle", ["bundle_v2_tiles", "bundle_v3"])
def test_two_generators_of_one_bundle_in_two_threads(tmp_path: Path, sanitize: str, bundle: str) -> None:
    """A third and a fourth thread cancel, tokenize and read images meanwhile."""
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(photo)
    done = run(sanitize, "probe_threads", str(DATA / bundle), str(photo), str(ROUNDS))
    counts = re.findall(r"^(\d+) whole, (\d+) cancelled$", done.stdout, re.MULTILINE)
    assert len(counts) == 2
    for whole, cancelled in counts:
        # Of the first half are cancelled for certain, the others and the last never; the storm may do either.
        assert int(cancelled) >= ROUNDS // 2
        assert int(whole) >= ROUNDS // 2 + 1
        assert int(whole) + int(cancelled) == 2 * ROUNDS + 1
