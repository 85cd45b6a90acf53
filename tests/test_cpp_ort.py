"""The C++ runtime on ONNX Runtime, stage by stage against `runtime/`: the same library runs the same graphs
with one thread, so every number is equal, bit by bit."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from runtime.backend import BackendOptions, create_backend
from runtime.backends.onnxruntime import OrtBackend
from runtime.bundle import load_bundle
from runtime.decoder import PREFILL_ROWS, DecoderRun, Room
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.plan import plan_pruning
from runtime.positions import Positions
from runtime.preprocess import PreparedImage
from runtime.request import Request
from runtime.vision import Selection
from tests.cpp_build import cpp_tool
from tests.cpp_probe import LineProbe

DATA = Path(__file__).parent / "data"
FROZEN = ("bundle_v1", "bundle_v2", "bundle_v2_tiles", "bundle_v3", "bundle_v3_q4")
FAMILIES = ("smolvlm", "qwen2_5_vl")  # tiles; images of their own size and three axes of positions
SIZES = ((40, 70), (33, 20), (64, 64), (16, 150))
STEPS = 30


def library() -> Path:
    """ONNX Runtime's library in the installed package."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    found = sorted(folder.glob("libonnxruntime.so*"))
    if not found:
        pytest.skip(f"this onnxruntime package has no libonnxruntime.so in {folder}: install one from PyPI")
    return found[-1]


class Probe(LineProbe):
    """probe_ort under way, with a folder for its numbers."""

    def __init__(self, folder: Path, *arguments: str, ort: Path | None = None) -> None:
        self.folder = folder
        environment = os.environ | {"FOPRU_ORT_LIB": str(library() if ort is None else ort)}
        super().__init__(cpp_tool("probe_ort"), *arguments, env=environment)

    def floats(self, **command: Any) -> np.ndarray:
        """Numbers that a command writes."""
        out = self.folder / "out.bin"
        answer = self.ask(**command, out=str(out))
        assert "error" not in answer, answer
        return np.fromfile(out, np.float32)

    def file(self, array: np.ndarray, name: str) -> str:
        """A file of an array's numbers."""
        path = self.folder / name
        np.ascontiguousarray(array, np.float32).tofile(path)
        return str(path)


class Pair:
    """The same bundle in both runtimes, one thread each."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.generator = Generator(load_bundle(root), threads=1)
        self.probe = Probe(folder, str(root), "1")

    def prepared(self, seed: int, count: int) -> tuple[tuple[PreparedImage, ...], list[dict[str, Any]]]:
        """Random images: of the Python runtime, and as the probe takes them."""
        rng = np.random.default_rng(seed)
        sizes = [SIZES[index % len(SIZES)] for index in range(count)]
        photos = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
        images = self.generator.preprocess(photos)
        described = [
            {
                "height": size[0],
                "width": size[1],
                "shape": list(image.pixel_values.shape),
                "pixels": self.probe.file(image.pixel_values, f"pixels_{index}.bin"),
            }
            for index, (size, image) in enumerate(zip(sizes, images, strict=True))
        ]
        return images, described


class Pairs:
    """Bundles in both runtimes by name, each opened once."""

    def __init__(self, roots: Callable[[str], Path], folder: Path) -> None:
        self._roots, self._folder = roots, folder
        self._made: dict[str, Pair] = {}

    def __call__(self, name: str) -> Pair:
        if name not in self._made:
            own = self._folder / name
            own.mkdir()
            self._made[name] = Pair(DATA / name if name in FROZEN else self._roots(name), own)
        return self._made[name]

    def close(self) -> None:
        for pair in self._made.values():
            pair.probe.close()


@pytest.fixture(scope="module")
def pair(family_bundle: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pairs]:
    library()
    made = Pairs(family_bundle, tmp_path_factory.mktemp("probe"))
    yield made
    made.close()


def same_images(mine: Sequence[Any], answer: dict[str, Any], features: np.ndarray) -> None:
    """Features, kept tokens, scores and places of every image."""
    assert "error" not in answer, answer
    done = 0
    for image, theirs in zip(mine, answer["images"], strict=True):
        rows = np.asarray(image.features)
        assert theirs["rows"] == len(rows)
        np.testing.assert_array_equal(features[done : done + rows.size].reshape(rows.shape), rows)
        done += rows.size
        assert theirs["kept"] == [kept.tolist() for kept in image.kept]
        assert theirs["kept_indices"] == image.kept_indices.tolist()
        assert theirs["places"] == image.assembly.places.tolist()
        if image.scores is None:
            assert theirs["scores"] is None
        else:
            assert theirs["scores"] == [scores.tolist() for scores in image.scores]
    assert done == features.size


@pytest.mark.parametrize("name", [*FROZEN, *FAMILIES])
def test_visual_tokens(pair: Pairs, name: str) -> None:
    both = pair(name)
    images, described = both.prepared(seed=1, count=11)  # more units than a call takes
    mine = both.generator.encode_unpruned(images)
    out = both.probe.folder / "out.bin"
    answer = both.probe.ask(do="encode", images=described, out=str(out))
    same_images(mine, answer, np.fromfile(out, np.float32))
    manifest = both.generator.manifest
    for selector in ("graph", "rank", "random", "uniform"):
        for ratio in (0.2, 0.7):
            request = Request("x", ratio=ratio, selector=selector)
            counts = plan_pruning(request, manifest, [image.plan for image in images]).counts
            selection = Selection(tuple(counts), selector, seed=7)
            mine = both.generator.encode_images(images, selection)
            answer = both.probe.ask(
                do="encode", images=described, counts=counts, selector=selector, seed=7, out=str(out)
            )
            same_images(mine, answer, np.fromfile(out, np.float32))


def counted(length: int, axes: int) -> Positions:
    ids = np.arange(length, dtype=np.int64) + 2 * np.arange(axes, dtype=np.int64)[:, None]
    return Positions(ids, length + 5)


def prepare(both: Pair, graph: str, room: Room, keep: int = 0) -> dict[str, Any]:
    return both.probe.ask(
        do="prepare",
        graph=graph,
        kind=both.generator.manifest.decoder.caches[graph],
        capacity=room.capacity,
        positions=room.positions.ids.tolist(),
        next=room.positions.next,
        keep=keep,
    )


def same_steps(both: Pair, run: DecoderRun, graph: str, tokens: list[int]) -> None:
    mine = np.stack([run.step(token).copy() for token in tokens])
    theirs = both.probe.floats(do="steps", graph=graph, tokens=tokens)
    np.testing.assert_array_equal(theirs.reshape(mine.shape), mine)


@pytest.mark.parametrize("name", [*FROZEN, *FAMILIES])
def test_logits(pair: Pairs, name: str) -> None:
    """Prefill, 30 steps, and a second answer on kept rows in a larger cache; every decoder of the bundle."""
    both = pair(name)
    info, rng = both.generator.manifest.decoder, np.random.default_rng(3)
    for graph in both.generator.decoder_graphs:
        positions = counted(21, info.position_axes)
        room = Room(21 + STEPS, positions)
        embeds = rng.normal(size=(1, 21, info.hidden_size)).astype(np.float32)
        tokens = rng.integers(0, info.vocab_size, STEPS).tolist()
        run = both.generator.decoder_run(room.capacity, positions, graph)
        made = prepare(both, graph, room)
        assert made == {"length": 0, "capacity": run.cache.capacity, "allocated": run.cache.allocated_bytes}
        theirs = both.probe.floats(do="prefill", graph=graph, embeds=both.probe.file(embeds, "embeds.bin"))
        np.testing.assert_array_equal(theirs, run.prefill(embeds))
        same_steps(both, run, graph, tokens)
        again = Room(60, counted(40, info.position_axes))
        run.rewind(17, again)
        prepare(both, graph, again, keep=17)
        rest = rng.normal(size=(1, 23, info.hidden_size)).astype(np.float32)
        theirs = both.probe.floats(do="prefill", graph=graph, embeds=both.probe.file(rest, "embeds.bin"))
        np.testing.assert_array_equal(theirs, run.prefill(rest))
        same_steps(both, run, graph, tokens[:20])


def test_a_prompt_of_more_rows_than_go_at_once(pair: Pairs) -> None:
    both = pair("bundle_v3")
    info, rng = both.generator.manifest.decoder, np.random.default_rng(5)
    length = 2 * PREFILL_ROWS + 7
    embeds = rng.normal(size=(1, length, info.hidden_size)).astype(np.float32)
    for graph in both.generator.decoder_graphs:
        positions = Positions(np.arange(length, dtype=np.int64)[None] % 200, 200)
        run = both.generator.decoder_run(length + 3, positions, graph)
        prepare(both, graph, Room(length + 3, positions))
        theirs = both.probe.floats(do="prefill", graph=graph, embeds=both.probe.file(embeds, "embeds.bin"))
        np.testing.assert_array_equal(theirs, run.prefill(embeds))
        same_steps(both, run, graph, [1, 2, 3])


def test_the_same_refusals(pair: Pairs) -> None:
    both = pair("bundle_v2")
    graph = both.generator.decoder_graph
    images, described = both.prepared(seed=2, count=2)

    def refused(counts: list[list[int]], selector: str = "graph") -> None:
        with pytest.raises(RequestError) as error:
            both.generator.encode_images(images, Selection(tuple(map(tuple, counts)), selector, 0))
        answer = both.probe.ask(
            do="encode", images=described, counts=counts, selector=selector, seed=0, out=os.devnull
        )
        assert answer["error"] == str(error.value)

    refused([[3]])
    refused([[3], [0]])
    refused([[3], [1000]])
    refused([[3], [3, 3]])
    refused([[3], [3]], "row")
    refused([[3], [3]], "none")
    refused([[3], [3]], "best")
    positions = counted(5, 1)
    run = both.generator.decoder_run(9, positions, graph)
    prepare(both, graph, Room(9, positions))
    with pytest.raises(RequestError) as error:
        run.rewind(1, Room(9, positions))
    assert prepare(both, graph, Room(9, positions), keep=1)["error"] == str(error.value)
    with pytest.raises(RequestError) as error:
        run.step(1)
    assert both.probe.ask(do="steps", graph=graph, tokens=[1], out=os.devnull)["error"] == str(error.value)


def test_the_library_is_found_where_it_is_said_to_be(tmp_path: Path) -> None:
    version = onnxruntime.__version__
    for place in (library(), library().parent):
        with Probe(tmp_path, ort=place) as probe:
            answer = probe.ask(do="backend", name="onnxruntime", threads=1)
        assert answer == {"description": f"ONNX Runtime {version} ({library()}), CPU"}


def test_a_library_that_cannot_be_loaded_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    with Probe(tmp_path, ort=tmp_path / "text.so") as probe:
        answer = probe.ask(do="backend", name="onnxruntime", threads=1)
    assert re.search(
        r"onnxruntime needs the library libonnxruntime\.so, which cannot be loaded \(.*text\.so.*\): set "
        r"FOPRU_ORT_LIB to the file, such as site-packages/onnxruntime/capi/libonnxruntime\.so\.\* of `pip",
        answer["error"],
    )
    with Probe(tmp_path, ort=tmp_path) as probe:
        answer = probe.ask(do="backend", name="onnxruntime", threads=1)
    assert "FOPRU_ORT_LIB is the folder" in answer["error"]


def test_another_library_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    build = ["c++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(other)]
    subprocess.run(build, input=b"int nothing;", check=True)
    with Probe(tmp_path, ort=other) as probe:
        answer = probe.ask(do="backend", name="onnxruntime", threads=1)
    assert "has no OrtGetApiBase, so it is not ONNX Runtime" in answer["error"]


def test_an_old_library_is_refused(tmp_path: Path) -> None:
    """And is not asked for an interface that it lacks: ONNX Runtime would complain on stderr."""
    other = tmp_path / "old.so"
    source = b"""
        extern "C" {
        static const void* none(unsigned) { __builtin_trap(); }
        static const char* version() { return "1.13.1"; }
        struct Base { const void* (*get)(unsigned); const char* (*version)(); } base = {none, version};
        const Base* OrtGetApiBase() { return &base; }
        }
    """
    build = ["c++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(other)]
    subprocess.run(build, input=source, check=True)
    with Probe(tmp_path, ort=other) as probe:
        answer = probe.ask(do="backend", name="onnxruntime", threads=1)
    assert "is ONNX Runtime 1.13.1, expected 1.14 or later: install a newer one" in answer["error"]


def test_backends_by_name(tmp_path: Path) -> None:
    with Probe(tmp_path) as probe:
        names = probe.ask(do="backends")["names"]
        unknown = probe.ask(do="backend", name="tensorflow", threads=1)
        many = probe.ask(do="backend", name="onnxruntime", threads=1025)
    assert names[:3] == ["onnxruntime", "ort-cuda", "ort-tensorrt"]
    assert unknown["error"] == f'backend is "tensorflow", expected one of {", ".join(names)}'
    assert many["error"] == "threads is 1025, expected 1..1024, or none for all cores"


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this package has the provider"
)
@pytest.mark.parametrize(
    ("name", "provider"),
    [("ort-cuda", "CUDAExecutionProvider"), ("ort-tensorrt", "TensorrtExecutionProvider")],
)
def test_a_package_without_gpus_is_refused(tmp_path: Path, name: str, provider: str) -> None:
    with Probe(tmp_path) as probe:
        answer = probe.ask(do="backend", name=name, threads=1)
    assert answer["error"].startswith(f"{name} needs {provider}, but {library()}, ONNX Runtime ")
    assert "offers" in answer["error"]
    assert "CPUExecutionProvider: install onnxruntime-gpu and the CUDA it was built for" in answer["error"]


def test_cache_kinds(pair: Pairs) -> None:
    backend = create_backend("onnxruntime", BackendOptions())
    assert isinstance(backend, OrtBackend)
    assert pair("bundle_v3").probe.ask(do="info")["kinds"] == list(backend.kinds_for("float32"))


def test_slots_are_those_of_the_header(tmp_path: Path) -> None:
    """`FOPRU_ORT_INCLUDE` is a folder with onnxruntime_c_api.h; a C++ compiler counts its slots."""
    include = os.environ.get("FOPRU_ORT_INCLUDE")
    if include is None:
        pytest.skip("set FOPRU_ORT_INCLUDE to a folder with ONNX Runtime's onnxruntime_c_api.h")
    with Probe(tmp_path) as probe:
        slots: dict[str, int] = probe.ask(do="slots")
    assert len(slots) > 40
    checks = "".join(
        f'static_assert(offsetof(OrtApi, {name}) == {slot} * sizeof(void*), "{name}");\n'
        for name, slot in slots.items()
    )
    source = tmp_path / "slots.cpp"
    source.write_text(f"#include <cstddef>\n#include <onnxruntime_c_api.h>\n{checks}")
    done = subprocess.run(
        ["c++", "-std=c++17", "-w", "-fsyntax-only", "-I", include, str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_units_on_the_real_library() -> None:
    """The unit tests that need ONNX Runtime, with none left out."""
    done = subprocess.run(
        [str(cpp_tool("fopru_tests")), "--test-case=ort*"],
        env=os.environ | {"FOPRU_ORT_LIB": str(library()), "FOPRU_REQUIRE_ORT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"test cases: +[1-9]", done.stdout), done.stdout
