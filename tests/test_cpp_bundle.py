"""src/bundle of the C++ runtime against runtime/manifest.py, contract.py, graph_check.py and bundle.py."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runtime import contract
from runtime.bundle import load_bundle
from runtime.contract import GraphContract
from runtime.decode import encode
from runtime.errors import BundleError
from runtime.graph_check import check_tables
from runtime.layouts import LAYOUTS
from runtime.manifest import Manifest
from tests import test_runtime_bundle as python_tests
from tests.cpp_build import ask, cpp_tool
from tests.cpp_layouts import PUBLISHED, python_layout, random_layout

DATA = Path(__file__).parent / "data"
FROZEN = sorted(path.name for path in DATA.iterdir())
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31 - 1,
    -0.0,
    0.5,
    1e-7,
    1e300,
    "",
    "a",
    "a'b\"c\n\u2028é",
    "{images}{prompt}",
    "x" * 100,
    [],
    [1],
    [1.5, "a", None],
    {},
    {"a": [True]},
    ["long"] * 40,
]
WIDE = [2**31, 2**62, -(2**63), 2**63 - 1]
"""Numbers that Python reads and C++ may refuse with other words: it counts in 32 bits where it can."""


@pytest.fixture(scope="module")
def probe() -> Path:
    return cpp_tool("probe_bundle")


def _record(manifest: Manifest) -> Any:
    return {**encode(manifest), "layout": manifest.layout.kind}


def _python(text: str, *, tables: bool) -> tuple[Any, str]:
    """What Python reads, or why it does not."""
    try:
        manifest = Manifest.from_json(text)
        if tables:
            check_tables(manifest)
    except BundleError as error:
        return None, str(error)
    return _record(manifest), ""


def _compare(probe: Path, texts: list[str]) -> int:
    """All texts through both; the number that both refuse."""
    refused = 0
    replies = ask(probe, [{"op": "tables", "text": text} for text in texts])
    for text, reply in zip(texts, replies, strict=True):
        record, why = _python(text, tables=True)
        assert reply.get("error", "") == why, text[-2000:]
        if not why:
            assert reply["value"] == json.loads(json.dumps(record))
        refused += bool(why)
    return refused


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("bundle", FROZEN)
def test_frozen_bundles_are_read_alike(probe: Path, bundle: str, verify: bool) -> None:
    (reply,) = ask(probe, [{"op": "open", "path": str(DATA / bundle), "verify": verify}])
    assert reply["value"] == json.loads(json.dumps(_record(load_bundle(DATA / bundle).manifest)))


@pytest.mark.parametrize("bundle", FROZEN)
def test_files_graphs_and_constants(probe: Path, bundle: str) -> None:
    opened = load_bundle(DATA / bundle)
    place = {"path": str(DATA / bundle) + "/./", "verify": False}
    names = ["tokenizer.json", "absent", *opened.manifest.files]
    for name, reply in zip(
        names, ask(probe, [{"op": "file", "name": n, **place} for n in names]), strict=True
    ):
        if name == "absent":
            with pytest.raises(BundleError) as error:
                opened.file(name)
            assert reply["error"] == str(error.value)
        else:
            assert reply["value"] == str(opened.file(name))
    graphs = list(opened.manifest.graphs)
    replies = ask(probe, [{"op": "graph", "name": name, **place} for name in [*graphs, "absent"]])
    assert [reply.get("value") for reply in replies] == [*(str(opened.graph(name)) for name in graphs), None]
    constants = [*opened.manifest.constants, "absent"]
    for name, reply in zip(
        constants, ask(probe, [{"op": "constant", "name": n, **place} for n in constants]), strict=True
    ):
        values = opened.constant(name)
        assert reply["value"] == (None if values is None else values.reshape(-1).tolist())


def _refusals_of_the_python_tests(text: str) -> list[str]:
    test: Any = python_tests.test_manifest_that_is_refused
    changes = [mark.args[1] for mark in test.pytestmark]
    return [
        json.dumps(python_tests.edited(text, path, value), ensure_ascii=False)
        for path, value, _ in changes[0]
    ]


def test_what_the_python_tests_refuse(probe: Path) -> None:
    texts = _refusals_of_the_python_tests((DATA / "bundle_v3" / "bundle.json").read_text())
    outside = ["../x", "/etc/passwd", "a/../../x", "a\\b", "./a", "a//b", "", "a/", ".."]
    for name in [*outside, ".", "a/..b"]:
        data = json.loads((DATA / "bundle_v3" / "bundle.json").read_text())
        data["files"][name] = {"bytes": 1, "sha256": "0"}
        texts.append(json.dumps(data))
    assert (
        _compare(probe, texts) == len(texts) - 3
    )  # the last two are plain, and one change is for another bundle


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values below, the containers included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, entry in items for place in _places(entry, (*path, key))]


def _at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def _mutated(rng: random.Random, original: Any, values: list[Any]) -> Any:
    data = copy.deepcopy(original)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        top = rng.choice(list(data))
        below = _places(data[top], (top,))
        path = rng.choice(below)
        parent, key = _at(data, path[:-1]), path[-1]
        match rng.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice(["unknown", "kind", "", "a b", "é"])] = rng.choice(values)
            case 2:
                other = rng.choice(_places(original))
                parent[key] = copy.deepcopy(_at(original, other))
            case 3 if isinstance(parent, dict):
                names = list(parent)
                rng.shuffle(names)
                shuffled = {name: parent[name] for name in names}
                parent.clear()
                parent.update(shuffled)
            case _:
                parent[key] = rng.choice(values)
                if "shape" in path and parent[key] == "":  # a dim without a name: C++ has no such thing
                    parent[key] = "dim"
        if not isinstance(data, dict) or not data:
            return data
    return data


@pytest.mark.parametrize("bundle", FROZEN)
def test_mutated_manifests_are_judged_alike(probe: Path, bundle: str) -> None:
    rng = random.Random(bundle)
    original = json.loads((DATA / bundle / "bundle.json").read_text())
    texts = [json.dumps(_mutated(rng, original, VALUES), ensure_ascii=rng.random() < 0.5) for _ in range(500)]
    refused = _compare(probe, texts)
    assert len(texts) // 2 < refused < len(texts)


@pytest.mark.parametrize("bundle", FROZEN)
def test_wide_numbers_are_refused_where_python_refuses_them(probe: Path, bundle: str) -> None:
    rng = random.Random(bundle)
    original = json.loads((DATA / bundle / "bundle.json").read_text())
    places = [path for path in _places(original) if isinstance(_at(original, path), int)]
    texts = []
    for path in places:
        data = copy.deepcopy(original)
        _at(data, path[:-1])[path[-1]] = rng.choice(WIDE)
        texts.append(json.dumps(data))
    replies = ask(probe, [{"op": "tables", "text": text} for text in texts])
    for path, text, reply in zip(places, texts, replies, strict=True):
        record, why = _python(text, tables="layers" not in path)  # Python would list every layer
        if why:
            assert "error" in reply, path
        elif "value" in reply:
            assert reply["value"] == json.loads(json.dumps(record))


@pytest.mark.parametrize("text", ["[]", "3", '"text"', "null", "true", "1.5", "{}"])
def test_json_that_is_no_manifest(probe: Path, text: str) -> None:
    assert _compare(probe, [text]) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "\0", "NaN", '{"format_version": 1, "format_version": 3}', "[" * 9999]
)
def test_text_that_is_no_json(probe: Path, text: str) -> None:
    (reply,) = ask(probe, [{"op": "manifest", "text": text}])
    assert reply["error"].startswith("bundle.json is not JSON (")
    assert reply["error"].endswith("): rebuild the bundle with `python -m export.build`")


def test_many_keys_of_an_old_manifest_take_no_quadratic_time(probe: Path) -> None:
    data = json.loads((DATA / "bundle_v1" / "bundle.json").read_text())
    for part in ("vision", "preprocess"):
        data[part] |= {f"key{number}": 0 for number in range(300_000)}
    assert _compare(probe, [json.dumps(data)]) == 1


def _contracts(manifest: Manifest) -> dict[str, Any]:
    info = manifest.decoder
    graphs: dict[str, GraphContract] = {
        **contract.vision_contracts(manifest.layout, info.hidden_size, grid_input=manifest.grid_input),
        contract.EMBED_TOKENS: contract.embed_contract(info.hidden_size),
        **{graph: contract.decoder_contract(info, kind) for graph, kind in info.caches.items()},
    }
    return {graph: encode(tensors) for graph, tensors in graphs.items()}


def _with_layout(original: dict[str, Any], layout: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A manifest of any layout and caches; only `Manifest` looks at it, so its tables may stay."""
    data = copy.deepcopy(original)
    made = python_layout(layout)
    caches = {contract.DECODER: rng.choice(contract.CACHES)}
    if rng.random() < 0.5:
        caches[contract.DECODER_PORTABLE] = rng.choice(contract.CACHES)
    data["layout"] = layout
    data["pruning"] |= {"default_ratio": 0.5, "default_tokens": None, "position_ids": "original"}
    data["pruning"] |= {
        "strategy": rng.choice(["rank", "row"]) if made.has_grid else "rank",
        "row_scope": "tile",
    }
    data["decoder"] |= {
        "layers": rng.randrange(1, 4),
        "hidden_size": rng.randrange(1, 99),
        "position_axes": made.position_axes,
        "caches": caches,
        "cache_dtype": rng.choice(["float32", "float16", "bfloat16"]),
    }
    file = next(iter(data["files"]))
    data["constants"] = {"image_newline": {"file": file, "shape": [data["decoder"]["hidden_size"]]}}
    graph = data["graphs"][contract.EMBED_TOKENS]
    tables = [tensor for name in data["graphs"] for tensor in data["graphs"][name]["inputs"]]
    graphs = [contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU, contract.EMBED_TOKENS, *caches]
    data["graphs"] = {name: {**graph, "inputs": tables} for name in graphs}
    return data


def test_the_contract_is_that_of_python_for_every_layout_and_cache(probe: Path) -> None:
    rng = random.Random(11)
    original = json.loads((DATA / "bundle_v3" / "bundle.json").read_text())
    layouts = [*PUBLISHED.values(), *(random_layout(kind, rng) for kind in sorted(LAYOUTS) * 30)]
    texts = [json.dumps(_with_layout(original, layout, rng)) for layout in layouts]
    replies = ask(probe, [{"op": "contract", "text": text} for text in texts])
    for text, reply in zip(texts, replies, strict=True):
        assert reply["value"] == json.loads(json.dumps(_contracts(Manifest.from_json(text))))


def test_a_claim_of_many_layers_takes_no_memory(probe: Path) -> None:
    data = json.loads((DATA / "bundle_v3" / "bundle.json").read_text())
    data["decoder"]["layers"] = 2**31 - 1
    (reply,) = ask(probe, [{"op": "tables", "text": json.dumps(data)}])
    layers = json.loads((DATA / "bundle_v3" / "bundle.json").read_text())["decoder"]["layers"]
    assert reply["error"] == (
        f"graph decoder_model_merged: input past_key_values.{layers}.key is absent, expected float32: "
        "rebuild the bundle with `python -m export.build`"
    )


def _same_refusal(probe: Path, root: Path, *, verify: bool = True) -> str:
    (reply,) = ask(probe, [{"op": "open", "path": str(root), "verify": verify}])
    with pytest.raises(BundleError) as error:
        load_bundle(root, verify=verify)
    assert reply["error"] == str(error.value)
    return str(error.value)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "bundle_v3", tmp_path / "bundle"))


def test_a_folder_that_is_no_bundle(probe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, says in [
        ("absent", "there is no bundle at"),
        ("file", "is a file, but a bundle is a directory"),
        ("file/below", "there is no bundle at"),
        ("empty", "has no bundle.json"),
        ("x" * 300, "cannot be opened ([Errno 36] File name too long"),
    ]:
        assert says in _same_refusal(probe, tmp_path / name)


def test_a_bundle_that_is_damaged(probe: Path, copied: Path) -> None:
    tokenizer, text = copied / "tokenizer.json", (copied / "tokenizer.json").read_bytes()
    tokenizer.write_bytes(text[:-1])
    assert "bytes, but bundle.json says" in _same_refusal(probe, copied, verify=False)
    tokenizer.write_bytes(text[:-1] + b"?")
    assert "does not have the SHA-256" in _same_refusal(probe, copied)
    assert "value" in ask(probe, [{"op": "open", "path": str(copied), "verify": False}])[0]
    tokenizer.unlink()
    assert "lacks tokenizer.json, so it was only copied in part" in _same_refusal(probe, copied)
    tokenizer.mkdir()
    assert "lacks tokenizer.json" in _same_refusal(probe, copied)
    tokenizer.rmdir()
    # A link is followed, as Python follows it: a bundle may share its files with another.
    tokenizer.symlink_to(DATA / "bundle_v3" / "tokenizer.json")
    assert "value" in ask(probe, [{"op": "open", "path": str(copied), "verify": True}])[0]


def test_a_manifest_that_cannot_be_read(probe: Path, copied: Path) -> None:
    manifest = copied / "bundle.json"
    manifest.write_bytes(b'{"format_version": "\xff"}')
    (reply,) = ask(probe, [{"op": "open", "path": str(copied), "verify": False}])
    assert reply["error"] == f"{manifest} cannot be read (byte 20 is not UTF-8): copy the bundle again"
    manifest.unlink()
    manifest.mkdir()
    assert "[Errno 21] Is a directory" in _same_refusal(probe, copied)


def test_a_manifest_that_is_a_pipe_is_not_waited_for(probe: Path, copied: Path) -> None:
    manifest = copied / "bundle.json"
    manifest.unlink()
    os.mkfifo(manifest)
    line = json.dumps({"op": "open", "path": str(copied), "verify": False}) + "\n"
    done = subprocess.run([probe], input=line.encode(), capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)["error"] == (
        f"{manifest} cannot be read ([Errno 29] Illegal seek: {str(manifest)!r}): copy the bundle again"
    )


@pytest.mark.parametrize("shape", [[9], [2, 4], [-8], [2**40, 2**40], [0], []])
def test_a_constant_of_another_size_than_its_shape(probe: Path, tmp_path: Path, shape: list[int]) -> None:
    root = Path(shutil.copytree(DATA / "bundle_v2_tiles", tmp_path / "bundle"))
    data = json.loads((root / "bundle.json").read_text())
    entry = data["constants"]["image_newline"]
    data["constants"]["other"] = {**entry, "shape": shape}
    (root / "bundle.json").write_text(json.dumps(data))
    (reply,) = ask(probe, [{"op": "constant", "path": str(root), "verify": True, "name": "other"}])
    if shape == [2, 4]:
        assert (
            reply["value"]
            == ask(probe, [{"op": "constant", "path": str(root), "verify": True, "name": "image_newline"}])[
                0
            ]["value"]
        )
        return
    with pytest.raises(BundleError) as error:
        load_bundle(root).constant("other")
    assert reply["error"] == str(error.value)
