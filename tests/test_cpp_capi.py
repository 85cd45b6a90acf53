"""fopru.h and fopru.hpp as a program of another language sees them: warnings, symbols, answers."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from runtime.bundle import load_bundle
from runtime.generator import Generator
from runtime.request import Request
from tests.cpp_build import SOURCE, cpp_tool
from tests.cpp_command import cpp_environment

INCLUDE = SOURCE / "include"
STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-I", str(INCLUDE)]
LANGUAGES = {"capi_program.c": ["cc", "-std=c11"], "hpp_program.cpp": ["c++", "-std=c++17"]}
DATA = Path(__file__).parent / "data"


def declared() -> set[str]:
    header = re.sub(r"/\*.*?\*/", "", (INCLUDE / "fopru" / "fopru.h").read_text(), flags=re.DOTALL)
    return set(re.findall(r"FOPRU_API[^;]*?\b(fopru_\w+)\(", header))


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("bundle", ["bundle_v1", "bundle_v3"])
def test_programs_get_the_answer_of_python(tmp_path: Path, name: str, bundle: str) -> None:
    library, program = cpp_tool("fopru_rt"), tmp_path / "program"
    command = [*LANGUAGES[name], *STRICT, str(SOURCE / "tests" / name), "-o", str(program)]
    link = [str(library), f"-Wl,-rpath,{library.parent}", "-pthread"]
    subprocess.run([*command, *link], check=True)
    image = DATA / bundle / "golden" / "image_0.png"
    done = subprocess.run(
        [str(program), str(DATA / bundle), str(image)],
        capture_output=True,
        encoding="utf-8",
        env=cpp_environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    request = Request("What is this?", (str(image),), ratio=0.5, max_new_tokens=12, ignore_eos=True)
    expected = Generator(load_bundle(DATA / bundle), threads=1).generate(request)
    assert (answer["text"], tuple(answer["token_ids"])) == (expected.text, expected.token_ids)
    assert answer["kept_indices"] == [list(kept) for kept in expected.kept_indices]


@pytest.mark.parametrize("bundle", ["bundle_v1", "bundle_v3"])
def test_answers_after_memory_has_ended_in_the_middle(tmp_path: Path, bundle: str) -> None:
    library, program = cpp_tool("fopru_rt"), tmp_path / "program"
    command = ["c++", "-std=c++17", *STRICT, str(SOURCE / "tests" / "memory_program.cpp"), "-o", str(program)]
    link = [str(library), f"-Wl,-rpath,{library.parent}", "-pthread", "-ldl"]
    subprocess.run([*command, *link], check=True)
    done = subprocess.run(
        [str(program), str(DATA / bundle)],
        capture_output=True,
        encoding="utf-8",
        env=cpp_environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 50  # answers that were refused


def test_nothing_but_the_declared_functions_can_be_seen() -> None:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(cpp_tool("fopru_rt"))], capture_output=True, text=True, check=True
    ).stdout
    visible = {line.split()[-1].split("@")[0] for line in listed.splitlines()}
    assert visible == declared()


def test_public_headers_choose_no_backend() -> None:
    for header in (INCLUDE / "fopru").iterdir():
        text = header.read_text()
        assert not re.search(r"cuda|NvInfer|onnxruntime_c_api", re.sub(r"/\*.*?\*/|//.*|\".*?\"", "", text))
        assert not re.search(r"#\s*if(?!ndef FOPRU_FOPRU_H|def __cplusplus| defined\(_WIN32\))", text), header


def test_the_code_of_the_documentation_compiles(tmp_path: Path) -> None:
    page = (SOURCE.parent.parent / "docs" / "cpp.md").read_text()
    blocks = re.findall(r"```cpp\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    includes, code = "#include <iostream>\n", "const std::uint8_t *luma = nullptr, *chroma = nullptr;\n"
    for line in "".join(blocks).splitlines():
        if line.startswith("#include"):
            includes += line + "\n"
        else:
            code += line + "\n"
    program = tmp_path / "page.cpp"
    program.write_text(f"{includes}int main() {{\n{code}}}\n")
    unused = ["-Wno-unused", "-fsyntax-only"]  # a page shows, it does not use
    subprocess.run([*LANGUAGES["hpp_program.cpp"], *STRICT, *unused, str(program)], check=True)


def test_every_field_of_requests_and_options_has_a_setter() -> None:
    header = (INCLUDE / "fopru" / "fopru.h").read_text()
    wrapper = (INCLUDE / "fopru" / "request.hpp").read_text()
    for struct, owner in (("fopru_request", "Request"), ("fopru_options", "Options")):
        body = re.findall(rf"typedef struct {struct} \{{(.*?)\}}", header, re.DOTALL)[0]
        names = set(re.findall(r"(\w+);", re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)))
        # The size is set by the library, the prompt by the constructor, counts by what they count.
        names -= {"size", "prompt", "image_count", "stop_count", "history_count", "images", "history"}
        assert len(names) >= 5
        missing = {name for name in names if f"{owner}& {name}(" not in wrapper}
        assert not missing, (struct, missing)
