"""The column score kernels, run on the CPU by a stand-in for CUDA (`tests/cuda_on_cpu`), against numpy."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels_on_cpu import (
    KERNELS,
    ROOT,
    STRICT,
    assert_cases,
    assert_stands_alone,
    compiled,
    need,
    ptxas,
)

SOURCES = ("column_score.cu", "column_score_check.cpp", "column_score_reference.cpp")
FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
# numpy reads the very bits in float64, so what is left is float32 arithmetic: dot products, exponentials, and
# two passes that each round the logits. 1e-5 of a uniform score is what the log-sum-exp form has to keep.
OF_UNIFORM = 1e-5

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    output = tmp_path_factory.mktemp("kernels") / "column_score.so"
    loaded = ctypes.CDLL(str(compiled(output, "-O2", "-shared", "-fPIC", sources=SOURCES)))
    loaded.fopru_column_score_status_string.restype = ctypes.c_char_p
    loaded.fopru_column_score_workspace_bytes.restype = ctypes.c_size_t
    return loaded


@pytest.fixture(params=["fopru_column_score", "fopru_column_score_reference"])
def score(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Callable[..., int]:
    """The kernels, then the reference: they promise the same."""
    return getattr(library, request.param)  # type: ignore[no-any-return]


class Tokens(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((f"stride_{axis}", ctypes.c_int64) for axis in ("image", "head", "token")),
    ]


class Args(ctypes.Structure):
    _fields_ = [
        ("struct_bytes", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("dtype", "images", "heads", "tokens", "head_dim")),
        *(("query_begin", ctypes.c_int32), ("query_end", ctypes.c_int32)),
        ("scale", ctypes.c_float),
        *(("q", Tokens), ("k", Tokens)),
        *(("key_mask", ctypes.c_void_p), ("lse", ctypes.c_void_p)),
        *(("lse_stride_image", ctypes.c_int64), ("lse_stride_head", ctypes.c_int64)),
        *(("scores", ctypes.c_void_p), ("workspace", ctypes.c_void_p)),
        ("workspace_bytes", ctypes.c_size_t),
    ]


def stored(values: Array, dtype: int) -> Array:
    """`values` as the kernel reads them: float32, float16, or bfloat16 as the upper half of a float32."""
    if dtype == BFLOAT16:
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float32 if dtype == FLOAT32 else np.float16)


def read_back(bits: Array, dtype: int) -> Array:
    if dtype == BFLOAT16:
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.astype(np.float64)


@dataclass
class Call:
    """Inputs of one call; `q` and `k` [images, heads, tokens, head_dim] may be views, last stride 1."""

    q: Array
    k: Array
    dtype: int
    scale: float
    queries: tuple[int, int] | None = None
    mask: Array | None = None
    lse: Array | None = None
    keep_alive: list[Array] = field(default_factory=list)

    def args(self) -> tuple[Args, Array]:
        images, heads, tokens, head_dim = self.q.shape
        scores = np.full((images, tokens), 7.0, np.float32)
        workspace = np.full(images * heads * tokens * (2 if self.lse is None else 1), np.nan, np.float32)
        self.keep_alive += [scores, workspace]
        begin, end = self.queries or (0, tokens)
        args = Args(ctypes.sizeof(Args), self.dtype, images, heads, tokens, head_dim, begin, end, self.scale)
        for view, values in ((args.q, self.q), (args.k, self.k)):
            view.data = values.ctypes.data
            steps = [stride // values.itemsize for stride in values.strides]
            assert steps[3] == 1
            view.stride_image, view.stride_head, view.stride_token = steps[:3]
        if self.mask is not None:
            args.key_mask = self.mask.ctypes.data
        if self.lse is not None:
            args.lse = self.lse.ctypes.data
            args.lse_stride_image, args.lse_stride_head = (stride // 4 for stride in self.lse.strides[:2])
        args.scores, args.workspace, args.workspace_bytes = (
            scores.ctypes.data,
            workspace.ctypes.data,
            workspace.nbytes,
        )
        return args, scores

    def run(self, function: Callable[..., int]) -> Array:
        args, scores = self.args()
        assert function(ctypes.byref(args), None) == 0
        return scores

    def logits(self) -> Array:
        q, k = read_back(self.q, self.dtype), read_back(self.k, self.dtype)
        logits = np.einsum("bhid,bhjd->bhij", q, k) * np.float32(self.scale)
        if self.mask is not None:
            logits = logits + np.where(self.mask <= -1e30, -np.inf, self.mask)[:, None, None, :]
        return np.asarray(logits)

    def expected(self) -> Array:
        logits = self.logits()
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        begin, end = self.queries or (0, logits.shape[2])
        weights /= weights.sum(-1, keepdims=True)
        return np.asarray(weights[:, :, begin:end].mean((1, 2)))


def random_call(shape: tuple[int, int, int, int], dtype: int, seed: int = 0, **rest: Any) -> Call:
    rng = np.random.default_rng(seed)
    q, k = (stored(rng.standard_normal(shape) * 1.5, dtype) for _ in range(2))
    return Call(q, k, dtype, shape[3] ** -0.5, **rest)


def assert_scores(got: Array, want: Array) -> None:
    np.testing.assert_allclose(got * got.shape[1], want * got.shape[1], rtol=OF_UNIFORM, atol=OF_UNIFORM)


SHAPES = [
    (1, 2, 577, 64),  # CLIP ViT-L/14-336 with two of its heads
    (1, 1, 729, 72),  # SigLIP so400m/384: head_dim padded to 80
    (2, 3, 17, 80),  # less than one tile
    (3, 1, 64, 96),  # exactly one tile
    (1, 2, 65, 128),
    (1, 1, 1, 8),
]


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_column_means_of_softmax(
    score: Callable[..., int], shape: tuple[int, int, int, int], dtype: int
) -> None:
    call = random_call(shape, dtype)
    got = call.run(score)
    assert_scores(got, call.expected())
    # every query gives away exactly 1; float32 sums of up to 729 terms
    np.testing.assert_allclose(got.sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16], ids=["float32", "float16"])
@pytest.mark.parametrize("queries", [(0, 1), (1, 130), (64, 128), (129, 130)], ids=str)
def test_a_range_of_queries(score: Callable[..., int], dtype: int, queries: tuple[int, int]) -> None:
    call = random_call((2, 2, 130, 64), dtype, queries=queries)  # cls, patches only, one whole tile, the last
    assert_scores(call.run(score), call.expected())


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_layouts_are_views_of_the_same_scores(score: Callable[..., int], dtype: int) -> None:
    images, heads, tokens, head_dim = shape = (2, 3, 70, 72)
    call = random_call(shape, dtype)
    plain = call.run(score)
    bnhd = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in (call.q, call.k)]
    packed = np.zeros((images, tokens, 3, heads, head_dim), call.q.dtype)
    for part, values in enumerate((call.q, call.k)):
        packed[:, :, part] = values.transpose(0, 2, 1, 3)
    of_packed = [packed[:, :, part].transpose(0, 2, 1, 3) for part in range(2)]
    for q, k in (bnhd, of_packed):
        assert not q.flags.c_contiguous
        np.testing.assert_array_equal(Call(q, k, dtype, call.scale).run(score), plain)


def test_one_key_head_for_all_query_heads(score: Callable[..., int]) -> None:
    call = random_call((2, 3, 40, 64), FLOAT16)
    call.k = np.broadcast_to(call.k[:, :1], call.q.shape)  # stride_head 0
    assert_scores(call.run(score), call.expected())


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16], ids=["float32", "float16"])
def test_log_sum_exp_of_the_caller(score: Callable[..., int], dtype: int) -> None:
    call = random_call((2, 2, 90, 64), dtype, queries=(5, 77))
    exact = np.log(np.exp(call.logits()).sum(-1))
    wide = np.full((2, 2, 128), np.nan, np.float32)  # padded rows, and NaN where nothing may be read
    wide[:, :, 5:77] = exact[:, :, 5:77]
    call.lse = wide[:, :, :90]
    # the given values are rounded to float32: half an ulp of about 6 is 2.4e-7 of a score
    assert_scores(call.run(score), call.expected())
    call.lse = wide + np.float32(np.log(2.0))  # another value is used, not recomputed: half the mass
    assert_scores(call.run(score), call.expected() / 2)


def test_key_mask(score: Callable[..., int]) -> None:
    call = random_call((2, 2, 100, 64), FLOAT16)
    call.mask = np.random.default_rng(1).standard_normal((2, 100)).astype(np.float32)
    call.mask[0, 90:] = -np.inf
    call.mask[1, ::3] = np.finfo(np.float32).min  # what PyTorch code writes for -inf
    got = call.run(score)
    assert_scores(got, call.expected())
    assert (got[0, 90:] == 0).all()
    assert (got[1, ::3] == 0).all()
    assert (got[0, :90] > 0).all()


def test_no_key_left_gives_zeros(score: Callable[..., int]) -> None:
    call = random_call((2, 1, 70, 64), FLOAT32)
    call.mask = np.zeros((2, 70), np.float32)
    call.mask[1] = -np.inf
    got = call.run(score)
    assert (got[1] == 0).all()
    whole = Call(call.q[:1], call.k[:1], FLOAT32, call.scale)
    np.testing.assert_array_equal(got[:1], whole.run(score))  # and the other image is as if alone


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16], ids=["float32", "float16"])
def test_logits_beyond_the_range_of_exp(score: Callable[..., int], dtype: int) -> None:
    rng = np.random.default_rng(2)
    q, k = (stored(np.sign(rng.standard_normal((1, 1, 50, 64))), dtype) for _ in range(2))
    call = Call(q, k, dtype, 8.0)  # logits from about -200 to 200, all exact
    assert np.abs(call.logits()).max() > 150
    assert_scores(call.run(score), call.expected())


def test_nan_comes_through(score: Callable[..., int]) -> None:
    call = random_call((2, 2, 70, 64), FLOAT16)
    call.q[1, 1, 65, 3] = np.nan
    got = call.run(score)
    assert np.isfinite(got[0]).all()
    assert np.isnan(got[1]).all()  # one bad query reaches every column of its image, and no other image


BAD: list[tuple[int, str, dict[str, object]]] = [
    (1, "only key_mask, lse and stream may be", {"scores": None}),
    (1, "is null", {"workspace": None}),
    (2, "different headers", {"struct_bytes": 8}),
    (3, "FOPRU_FLOAT32, FOPRU_FLOAT16, FOPRU_BFLOAT16", {"dtype": 3}),
    (4, "product below 2\\^31", {"heads": 0}),
    (4, "split the images", {"images": 2**20, "heads": 2**10}),
    (5, "multiple of 8 from 8 to 128", {"head_dim": 60}),
    (5, "multiple of 8 from 8 to 128", {"head_dim": 136}),
    (6, "0 <= query_begin < query_end <= tokens", {"query_begin": 3, "query_end": 3}),
    (6, "0 <= query_begin < query_end <= tokens", {"query_end": 41}),
    (7, "finite", {"scale": float("nan")}),
    (8, "multiples of 16 bytes", {"q.stride_token": 68}),
    (8, "not be negative", {"k.stride_image": -64}),
    (8, "not be negative", {"lse": 64, "lse_stride_head": -1}),
    (9, "aligned to 16 bytes", {"k.data": 8}),
    (9, "key_mask, lse and scores to 4", {"key_mask": 2}),
    (10, "fopru_column_score_workspace_bytes", {"workspace_bytes": 1279}),
]


@pytest.mark.parametrize(("status", "sentence", "change"), BAD, ids=[next(iter(c[2])) for c in BAD])
def test_bad_arguments_have_a_status_and_a_sentence(
    library: ctypes.CDLL, score: Callable[..., int], status: int, sentence: str, change: dict[str, object]
) -> None:
    args, scores = random_call((2, 2, 40, 64), FLOAT16).args()
    for name, value in change.items():
        owner, _, attribute = name.rpartition(".")
        setattr(getattr(args, owner) if owner else args, attribute, value)
    assert score(ctypes.byref(args), None) == status
    assert re.search(sentence, library.fopru_column_score_status_string(status).decode())
    assert (scores == 7.0).all()  # nothing ran


def test_no_arguments_at_all(score: Callable[..., int]) -> None:
    assert score(None, None) == 1


def test_every_status_of_the_header_has_its_sentence(library: ctypes.CDLL) -> None:
    header = (KERNELS / "column_score.h").read_text()
    values = [
        int(v) for v in re.findall(r"^  FOPRU_[A-Z_]+ = (\d+),$", header.split("enum FopruStatus")[1], re.M)
    ]
    assert values == list(range(13))
    sentences = {library.fopru_column_score_status_string(value) for value in values}
    assert len(sentences) == 13
    assert b"unknown status" not in sentences
    assert library.fopru_column_score_status_string(99) == b"unknown status"


@pytest.mark.parametrize("launches", [0, 1, 2])
def test_a_refused_launch_is_reported(library: ctypes.CDLL, launches: int) -> None:
    args, _ = random_call((1, 1, 20, 64), FLOAT16).args()
    library.cuda_on_cpu_refuse_after(launches)
    try:
        assert library.fopru_column_score(ctypes.byref(args), None) == 11
    finally:
        library.cuda_on_cpu_refuse_after(-1)
    assert library.fopru_column_score(ctypes.byref(args), None) == 0


def test_workspace_grows_with_the_tokens_not_with_their_square(library: ctypes.CDLL) -> None:
    size = library.fopru_column_score_workspace_bytes
    assert size(1, 16, 4096, 0) == 2 * 4 * 16 * 4096  # 512 KiB, where P in float32 is 1 GiB
    assert size(1, 16, 4096, 1) == 4 * 16 * 4096
    assert size(2, 16, 8192, 0) == 4 * size(1, 16, 4096, 0)
    assert [size(0, 1, 1, 0), size(1, -1, 1, 0), size(2**15, 2**15, 2, 0)] == [0, 0, 0]


def test_no_access_outside_a_tensor_and_no_missing_barrier(tmp_path: Path) -> None:
    assert_cases(tmp_path, "sanitized_cases.cpp", 10, sources=SOURCES)


REMOVED = [
    ("tiles.cuh", "__syncthreads();  // everybody has read", "^case 0"),
    ("column_score.cu", "Tile::put(shared, 1, totals);\n  __syncthreads();", "^case 0"),
    ("tiles.cuh", "__pipeline_wait_prior(kAhead);", "a thread ended with copies it never waited for"),
]


@pytest.mark.parametrize(
    ("file", "text", "said"), REMOVED, ids=["before refill", "after put", "wait for copies"]
)
def test_a_removed_barrier_is_seen(tmp_path: Path, file: str, text: str, said: str) -> None:
    # without this, the test above could pass because the stand-in hides races
    kernels = shutil.copytree(KERNELS, tmp_path / "kernels")
    source = (kernels / file).read_text()
    assert source.count(text) == 1
    (kernels / file).write_text(
        source.replace(text, re.sub(r"__(syncthreads|pipeline)\w*\(\w*\);", "", text))
    )
    programs = ("sanitized_cases.cpp",)
    program = compiled(tmp_path / "cases", "-O1", sources=SOURCES, programs=programs, kernels=kernels)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(said, done.stdout + done.stderr)


@pytest.mark.parametrize("header", ["column_score.h", "column_score_reference.h"])
def test_public_headers_stand_alone_and_need_no_cuda(header: str) -> None:
    assert_stands_alone(header)
    includes = re.findall(r'#include [<"](\S+)[>"]', (KERNELS / header).read_text())
    assert set(includes) <= {"cstddef", "cstdint", "column_score.h"}


CONSUMER = """
cmake_minimum_required(VERSION 3.20)
project(consumer LANGUAGES CXX)
find_package(fopru_kernels 0.1 REQUIRED)
add_library(plugin SHARED plugin.cpp)  # as a TensorRT plugin is: needs position independent code
target_link_libraries(plugin PRIVATE fopru::kernels_reference)
"""
PLUGIN = """
#include "column_score_reference.h"
extern "C" int answer() { return fopru_column_score_reference(nullptr, nullptr); }
"""


def test_an_installed_package_links_into_a_shared_library(tmp_path: Path) -> None:
    if shutil.which("cmake") is None or shutil.which("g++") is None:
        pytest.skip("cmake and g++ are not both installed")
    (tmp_path / "CMakeLists.txt").write_text(CONSUMER)
    (tmp_path / "plugin.cpp").write_text(PLUGIN)
    prefix, build, consumer = (str(tmp_path / name) for name in ("prefix", "build", "consumer"))
    steps = [
        [
            "cmake",
            "-S",
            str(KERNELS),
            "-B",
            build,
            "-DFOPRU_KERNELS_CUDA=OFF",
            f"-DCMAKE_INSTALL_PREFIX={prefix}",
        ],
        ["cmake", "--build", build, "--target", "install"],
        ["cmake", "-S", str(tmp_path), "-B", consumer, f"-DCMAKE_PREFIX_PATH={prefix}"],
        ["cmake", "--build", consumer],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "building the CPU reference only" in subprocess.run(steps[0], capture_output=True, text=True).stdout
    )
    assert ctypes.CDLL(str(tmp_path / "consumer" / "libplugin.so")).answer() == 1


def test_the_example_of_the_docs_compiles(tmp_path: Path) -> None:
    need("g++")
    blocks = re.findall(r"```cpp\n(.*?)```", (ROOT / "docs" / "kernels.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    (tmp_path / "example.cpp").write_text(blocks[0])
    command = ["g++", *STRICT, "-fsyntax-only", f"-I{KERNELS}", str(tmp_path / "example.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_bench_program_runs_where_there_is_no_gpu(tmp_path: Path) -> None:
    bench = str(ROOT / "bench" / "kernel" / "column_score_bench.cu")
    program = compiled(tmp_path / "bench", "-O2", sources=SOURCES, programs=(bench,))
    done = subprocess.run([program, "1", "2,130,72", "1,65,64"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["device"] == "stand-in"  # its times mean nothing, its errors do
    assert [(s["heads"], s["tokens"], s["head_dim"]) for s in result["shapes"]] == [(2, 130, 72), (1, 65, 64)]
    for shape in result["shapes"]:
        # of a uniform score, and not zero, which only a comparison with itself gives
        errors = [*shape["max_error_times_tokens"].values(), shape["unfused_against_fused_times_tokens"]]
        assert len(errors) == 4
        assert all(0 < error < OF_UNIFORM for error in errors)
        assert shape["workspace_bytes"] == 8 * shape["heads"] * shape["tokens"]
        assert shape["floor_memory_us"] is None  # the stand-in knows no clock, as some devices do not
        assert list(shape["microseconds"]) == ["fused", "fused_lse_given", "unfused"]
    wrong = subprocess.run([program, "1", "2x130"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, "2x130: a shape is heads,tokens,head_dim\n")


def kernel_resources(architecture: str, output: Path) -> list[dict[str, str]]:
    """What ptxas says about each kernel of column_score.cu: name, registers, shared memory, stack, spills."""
    pattern = (
        r"(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
        r"(?:.*?(?P<shared>\d+) bytes smem)?"
    )
    reports = ptxas("column_score.cu", architecture, output).split("Compiling entry function '")[1:]
    found = [re.match(pattern, report, re.DOTALL) for report in reports]
    return [match.groupdict() for match in found if match is not None]


def test_no_kernel_spills_on_orin_hopper_or_thor(tmp_path: Path) -> None:
    need("nvcc")
    architectures = ["sm_87", "sm_90a", "sm_110"]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda a: kernel_resources(a, tmp_path / f"{a}.cubin"), architectures))
    for architecture, kernels in zip(architectures, found, strict=True):
        # two passes for three dtypes and four depths, and the mean over heads
        assert len(kernels) == 25, architecture
        for kernel in kernels:
            print(architecture, kernel)
            assert (kernel["stack"], kernel["stores"], kernel["loads"]) == ("0", "0", "0"), (
                architecture,
                kernel,
            )
            assert int(kernel["shared"] or 0) <= 48 * 1024
