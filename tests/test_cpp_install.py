"""The installed C++ runtime: found by CMake and pkg-config, and nothing but its C functions can be seen."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from runtime.version import __version__
from tests.cpp_build import SOURCE, build_folder, cpp_tool

SYSTEM = {
    "libc",
    "libstdc++",
    "libm",
    "libgcc_s",
    "libdl",
    "libpthread",
    "ld-linux-x86-64",
    "ld-linux-aarch64",
}
HEADER = (SOURCE / "include" / "fopru" / "fopru.h").read_text()

C_PROGRAM = """
#include <fopru/fopru.h>
#include <stdio.h>

int main(void) {
    fopru_bundle *bundle = NULL;
    fopru_status status = fopru_bundle_open("nowhere", FOPRU_VERIFY, &bundle);
    printf("%s %d %d %s\\n", fopru_version(), fopru_abi_version(), (int)status, fopru_last_error());
    return 0;
}
"""

CMAKE_LISTS = f"""
cmake_minimum_required(VERSION 3.20)
project(user C CXX)
find_package(fopru_rt {__version__} REQUIRED)
add_executable(user user.c)
target_link_libraries(user PRIVATE fopru::rt)
add_executable(wrapped wrapped.cpp)
target_link_libraries(wrapped PRIVATE fopru::rt)
"""

ERROR = "there is no bundle at nowhere: build one with `python -m export.build --output nowhere`"
ANSWER = f"{__version__} 1 1 {ERROR}\n"


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def library() -> Path:
    return cpp_tool("fopru_rt")


@pytest.fixture(scope="module")
def prefix(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cpp_tool("fopru")
    folder = tmp_path_factory.mktemp("prefix")
    _run("cmake", "--install", build_folder(), "--prefix", folder)
    return folder


def _library_folder(prefix: Path) -> Path:
    return next(prefix.rglob("libfopru_rt.so")).parent


def test_a_program_in_c_by_find_package(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "user.c").write_text(C_PROGRAM)
    wrapper = "#include <fopru/fopru.hpp>\nint main() { return fopru_abi_version() - 1; }\n"
    (tmp_path / "wrapped.cpp").write_text(wrapper)
    (tmp_path / "CMakeLists.txt").write_text(CMAKE_LISTS)
    build = tmp_path / "build"
    _run("cmake", "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_CXX_STANDARD=17")
    _run("cmake", "--build", build)
    assert _run(build / "user") == ANSWER
    _run(build / "wrapped")


def test_the_example_builds_against_what_is_installed(prefix: Path, tmp_path: Path) -> None:
    example = Path(__file__).parent.parent / "examples" / "cpp"
    _run("cmake", "-S", example, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}")
    _run("cmake", "--build", tmp_path)
    done = subprocess.run([tmp_path / "ask"], capture_output=True, text=True, check=False)
    assert done.returncode > 0  # it wants a bundle, and says so
    assert done.stderr


def test_a_program_in_c_by_pkg_config(prefix: Path, tmp_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    (tmp_path / "user.c").write_text(C_PROGRAM)
    folder = _library_folder(prefix)
    path = f"--with-path={folder / 'pkgconfig'}"
    assert _run("pkg-config", path, "--modversion", "fopru_rt").strip() == __version__
    flags = _run("pkg-config", path, "--cflags", "--libs", "fopru_rt").split()
    _run(
        "cc",
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Werror",
        tmp_path / "user.c",
        *flags,
        f"-Wl,-rpath,{folder}",
        "-o",
        tmp_path / "user",
    )
    assert _run(tmp_path / "user") == ANSWER


@pytest.mark.parametrize(("wanted", "found"), [("0.0.1", True), ("99.0", False)])
def test_a_later_version_serves_an_earlier_one(
    prefix: Path, tmp_path: Path, wanted: str, found: bool
) -> None:
    """As the soname promises, which stays (below)."""
    (tmp_path / "CMakeLists.txt").write_text(CMAKE_LISTS.replace(__version__, wanted))
    (tmp_path / "user.c").write_text(C_PROGRAM)
    (tmp_path / "wrapped.cpp").write_text("int main() {}")
    folders = ["-S", str(tmp_path), "-B", str(tmp_path / "build")]
    command = ["cmake", *folders, f"-DCMAKE_PREFIX_PATH={prefix}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == found, done.stderr
    assert ("compatible with" in done.stderr) == (not found)


def test_the_installed_command_answers(prefix: Path) -> None:
    assert "run" in _run(prefix / "bin" / "fopru", "--help")


def test_only_the_functions_of_the_header_can_be_seen(library: Path) -> None:
    declared = set(re.findall(r"^FOPRU_API [^;]*?\b(fopru_\w+)\(", HEADER, re.MULTILINE))
    listed = _run("nm", "-D", "--defined-only", library).splitlines()
    assert {line.split()[-1] for line in listed} == declared


def test_the_library_needs_the_system_alone(library: Path) -> None:
    needed = set(re.findall(r"NEEDED.*\[(.+?)\.so", _run("readelf", "-d", library)))
    assert needed <= SYSTEM


def test_the_soname_stays_when_functions_are_added(library: Path) -> None:
    """A program of an older header goes on loading the library, whatever FOPRU_ABI_VERSION has grown to."""
    assert "soname: [libfopru_rt.so.1]" in _run("readelf", "-d", library)
