"""What a worker needs to know to measure: small, frozen, and sent from process to process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calib.errors import OptionError
from runtime.backend import NATIVE_BACKENDS

__all__ = ["RunnerSpec"]


@dataclass(frozen=True)
class RunnerSpec:
    """How samples are measured.

    Attributes:
        bundles: (precision label, path of a bundle); the first has the label "", is the one that is
            calibrated, and makes the reference.
        backend: name of a backend of the runtime.
        threads: inside one operator; None: the backend's choice.
        max_new_tokens: most tokens of an answer.
        seed: of what is drawn, with the sample's digest: `random` keeps the same tokens in every run.
        work: folder for graphs that are made on the way; several processes may share it.
    """

    bundles: tuple[tuple[str, Path], ...]
    backend: str
    threads: int | None
    max_new_tokens: int
    seed: int
    work: Path

    def __post_init__(self) -> None:
        labels = [label for label, _ in self.bundles]
        if not labels or labels[0] != "" or len(set(labels)) < len(labels):
            raise OptionError(
                f"the labels of the bundles are {labels}, expected '' for the bundle that is calibrated, "
                "then another name for each: name every precision once"
            )
        if self.backend in NATIVE_BACKENDS:
            raise OptionError(
                f"backend is {self.backend!r}, which answers whole requests, but settings are compared stage "
                "by stage: use the backend of the same engine without C++, e.g. onnxruntime"
            )
        if self.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens is {self.max_new_tokens}: give at least 1")

    def path(self, label: str) -> Path:
        """The bundle of a precision.

        Raises:
            OptionError: there is none of that name.
        """
        for name, path in self.bundles:
            if name == label:
                return path
        known = ", ".join(repr(name) for name, _ in self.bundles)
        raise OptionError(f"precision is {label!r}, expected one of {known}: give a bundle for it")
