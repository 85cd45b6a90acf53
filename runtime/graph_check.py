"""Whether a bundle's parts fit: the numbers of the manifest, its tables of the graphs, the graphs themselves.

A number that is wrong in one place would give wrong indices without a word, so all three are compared.
"""

from __future__ import annotations

from runtime import contract
from runtime.backend import Session
from runtime.contract import GraphContract, TensorSpec
from runtime.errors import BundleError
from runtime.manifest import GraphInfo, Manifest

__all__ = ["check_session", "check_tables"]

_REBUILD = "rebuild the bundle with `python -m export.build`"


def check_tables(manifest: Manifest) -> None:
    """Every graph's table offers the tensors of the contract, with their dtypes and fixed dimensions.

    More tensors than these are fine.

    Raises:
        BundleError: a tensor is absent, or has another dtype or shape.
    """
    width = manifest.decoder.hidden_size
    expected: dict[str, GraphContract] = {
        **contract.vision_contracts(manifest.layout, width, grid_input=manifest.grid_input),
        contract.EMBED_TOKENS: contract.embed_contract(width),
        **{
            graph: contract.decoder_contract(manifest.decoder, kind)
            for graph, kind in manifest.decoder.caches.items()
        },
    }
    for graph, wanted in expected.items():
        info = manifest.graphs[graph]
        for role, wants, has in (
            ("input", wanted.inputs, info.inputs),
            ("output", wanted.outputs, info.outputs),
        ):
            found = {tensor.name: tensor for tensor in has}
            for tensor in wants:
                _check_tensor(f"graph {graph}: {role} {tensor.name}", tensor, found.get(tensor.name))


def check_session(graph: str, info: GraphInfo, session: Session) -> None:
    """The opened graph has the tensors of its table, and the same dimensions wherever both fix them.

    Raises:
        BundleError: it does not.
    """
    for role, table, real in (
        ("input", info.inputs, session.inputs),
        ("output", info.outputs, session.outputs),
    ):
        for tensor in table:
            if tensor.name not in real:
                raise BundleError(
                    f"graph {graph} has no {role} {tensor.name}, which bundle.json lists "
                    f"(it has {', '.join(real)}): {_REBUILD}"
                )
            shape = real[tensor.name]
            fixed = zip(tensor.shape, shape, strict=False)
            if shape and any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in fixed):
                raise BundleError(
                    f"graph {graph}: {role} {tensor.name} is {_dims(shape)} in the file, but bundle.json "
                    f"says {_dims(tensor.shape)}: {_REBUILD}"
                )


def _check_tensor(where: str, wanted: TensorSpec, found: TensorSpec | None) -> None:
    if found is None or found.dtype != wanted.dtype:
        dtype = "absent" if found is None else found.dtype
        raise BundleError(f"{where} is {dtype}, expected {wanted.dtype}: {_REBUILD}")
    same = len(found.shape) == len(wanted.shape) and all(
        want == has for want, has in zip(wanted.shape, found.shape, strict=True) if isinstance(want, int)
    )
    if not same:
        raise BundleError(
            f"{where} has the shape {_dims(found.shape)}, but the rest of bundle.json makes it "
            f"{_dims(wanted.shape)}: {_REBUILD}"
        )


def _dims(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
