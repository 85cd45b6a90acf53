"""What a device says of itself, from fake files and tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.errors import EngineError
from runtime.tensorrt.identity import (
    TARGETS,
    EngineIdentity,
    Probe,
    find_identity,
    find_trtexec,
    jetpack_of,
    target_named,
)

RELEASE = "# R{} (release), REVISION: {}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan 8\n"
ORIN = "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0"


def device(
    root: Path, tools: dict[str, str], *, compatible: str = "", release: str = "", version: str = ""
) -> Probe:
    for name, text in (("proc/device-tree/compatible", compatible), ("etc/nv_tegra_release", release)):
        if text:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)

    def run(command: Sequence[str]) -> str | None:
        return tools.get(" ".join(command)) or tools.get(command[0])

    return Probe(root, run, lambda: SimpleNamespace(__version__=version) if version else None)


@pytest.mark.parametrize(
    ("release", "revision", "jetpack"),
    [
        (35, "4.1", "5.1"),
        (36, "3.0", "6.0"),
        (36, "4.0", "6.1"),
        (36, "4.3", "6.2"),
        (36, "4.4", "6.2.1"),
        (36, "4.7", "6.2.1"),
        (36, "5.0", "6.2.2"),
        (38, "2.0", "7.0"),
        (38, "4.0", "7.1"),
        (39, "0.0", "7.2"),
        (39, "2.1", "7.2.1"),
        (32, "7.1", "l4t32.7"),
        (40, "1", "l4t40.1"),
    ],
)
def test_jetpack_of_a_release(release: int, revision: str, jetpack: str) -> None:
    # L4T 36.4.3 is written REVISION: 4.3
    assert jetpack_of(RELEASE.format(release, revision)) == jetpack


def test_a_text_without_release_is_no_jetson() -> None:
    assert jetpack_of("") is None
    assert jetpack_of("Ubuntu 22.04") is None


def test_an_orin_with_the_package(tmp_path: Path) -> None:
    probe = device(tmp_path, {}, compatible=ORIN, release=RELEASE.format(36, "4.3"), version="10.3.0")
    found = find_identity(probe)
    assert found == EngineIdentity("orin", 87, "10.3.0", "6.2")
    assert found.tag == "orin-sm87-trt10.3.0-jp6.2"
    assert str(found) == "orin (SM87), TensorRT 10.3.0, JetPack 6.2"


def test_a_thor_with_trtexec_alone(tmp_path: Path) -> None:
    tools = {"dpkg-query": "10.13.3.9-1+cuda13.0"}
    probe = device(tmp_path, tools, compatible="nvidia,tegra264\0", release=RELEASE.format(38, "4.0"))
    assert find_identity(probe).tag == "thor-sm110-trt10.13.3-jp7.1"


def test_the_version_that_trtexec_prints(tmp_path: Path) -> None:
    help_text = "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b4] # trtexec --help"
    probe = device(tmp_path, {"trtexec": help_text}, compatible=ORIN)
    assert find_identity(probe) == EngineIdentity("orin", 87, "10.3.0", None)
    assert find_trtexec(probe) == "trtexec"
    (tmp_path / "usr/src/tensorrt/bin").mkdir(parents=True)
    (tmp_path / "usr/src/tensorrt/bin/trtexec").touch()
    assert find_trtexec(probe) == "/usr/src/tensorrt/bin/trtexec"
    assert find_trtexec(device(tmp_path / "empty", {})) is None


def test_a_desktop_card(tmp_path: Path) -> None:
    probe = device(tmp_path, {"nvidia-smi": "NVIDIA GeForce RTX 3090, 8.6\n"}, version="11.1.0.3")
    assert find_identity(probe) == EngineIdentity("rtx-3090", 86, "11.1.0", None)
    assert find_identity(probe).tag == "rtx-3090-sm86-trt11.1.0"


def test_no_gpu_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"this machine has no NVIDIA GPU .*--plan-only --target jetpack6"
    ) as told:
        find_identity(device(tmp_path, {"nvidia-smi": "NVIDIA-SMI has failed"}, version="10.3.0"))
    assert "\n" not in str(told.value)


def test_no_tensorrt(tmp_path: Path) -> None:
    probe = device(tmp_path, {"dpkg-query": "no packages found"}, compatible=ORIN)
    with pytest.raises(
        EngineError, match=r"this orin \(SM87\) has no TensorRT, neither the Python package nor"
    ):
        find_identity(probe)


def test_targets_by_name() -> None:
    assert target_named("jetpack6").identity.tag == "orin-sm87-trt10.3.0-jp6.2"
    assert {target.identity.sm for target in TARGETS.values()} == {87, 110}
    with pytest.raises(EngineError, match='target is "jetpack9", expected one of jetpack6, jetpack7'):
        target_named("jetpack9")


def test_this_machine_is_asked_without_harm() -> None:
    # whatever it is: a missing tool, a tool that hangs or a package that does not load is not an exception
    probe = Probe()
    assert probe.run(["fopru-no-such-tool"]) is None
    assert probe.text("proc/no/such/file") is None
    probe.module()
