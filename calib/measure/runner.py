"""One sample under many settings, through the runtime's own stages.

    runner = SampleRunner(RunnerSpec((("", Path("bundle")),), "onnxruntime", None, 32, 0, Path("work")))
    records = runner.run(sample, [REFERENCE, Setting("rank", 0.3), Setting("random", 0.3)])

The bundle's own strategy runs the pruned graph at each ratio, as on a device. All else that chooses tokens
chooses on the host from an encoding that is made once per sample: the rows are the same, as an early gather
is exact, and its vision time is that of the whole encoding. Nothing is kept from one setting for the next but
that encoding, whose time each is charged with.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from calib.data.sample import Sample
from calib.errors import CalibError, RunError
from calib.measure.answer import Answer, answer
from calib.measure.check import check_settings
from calib.measure.describe import describe
from calib.measure.encode import Encoded, SampleEncoder
from calib.measure.fidelity import divergence, is_correct, same_first
from calib.measure.pictures import open_picture
from calib.measure.spec import RunnerSpec
from calib.measure.whole import LoadedBundle
from calib.record import Record
from calib.settings import REFERENCE, Setting
from runtime.bundle import load_bundle
from runtime.errors import FopruError
from runtime.request import Request

__all__ = ["RunnerSpec", "SampleRunner", "check_settings", "describe"]

_REMEMBERED = 64
"""References of the last samples, as a search asks for a sample again with other settings."""


@dataclass(frozen=True)
class _Reference:
    """The unpruned answer of a sample: its row, and the logits [V] of its first token."""

    record: Record
    logits: npt.NDArray[np.float32]


class SampleRunner:
    """Measures samples; owns the open graphs of all bundles. Not to be used from two threads at once.

    The first time that a process measures a ratio, its graphs run untimed first, as first runs set up memory
    and kernels. Later samples may have pictures and prompts of other sizes, which are not warmed up.
    """

    def __init__(self, spec: RunnerSpec) -> None:
        """Check the bundles; graphs are opened when a setting needs them.

        Raises:
            BundleError: a bundle is missing or damaged.
            BackendError: the backend is unknown or not installed.
        """
        self.spec = spec
        # Sizes alone are checked: whoever starts workers verifies a bundle once.
        self._bundles = {
            label: LoadedBundle(load_bundle(path, verify=False), spec.backend, spec.threads, spec.work)
            for label, path in spec.bundles
        }
        self._references: OrderedDict[str, _Reference] = OrderedDict()

    def run(self, sample: Sample, settings: Sequence[Setting]) -> list[Record]:
        """One record per setting, in order; what cannot be measured has an `error`.

        The reference is measured if it was not, also where no setting asks for it. Every setting is compared
        with that of the bundle "", whatever its own precision is.
        """
        try:
            course = _Course(self, sample)
            reference = self._reference(course)
            return [course.record(setting, reference) for setting in settings]
        except (FopruError, CalibError) as error:  # those of one setting are in its record
            return [Record(sample.name, setting, error=str(error)) for setting in settings]
        finally:
            for bundle in self._bundles.values():
                bundle.space.forget()

    def bundle(self, label: str) -> LoadedBundle:
        """The open bundle of a precision.

        Raises:
            OptionError: there is none of that name.
        """
        self.spec.path(label)
        return self._bundles[label]

    def _reference(self, course: _Course) -> _Reference:
        key = f"{course.sample.name} {course.sample.digest}"
        if key not in self._references:
            self._references[key] = course.reference()
            if len(self._references) > _REMEMBERED:
                self._references.popitem(last=False)
        return self._references[key]


class _Course:
    """One sample being measured."""

    def __init__(self, runner: SampleRunner, sample: Sample) -> None:
        self.sample = sample
        self._runner = runner
        self._pictures = tuple(open_picture(image) for image in sample.images)
        self._encoders: dict[str, SampleEncoder] = {}

    def reference(self) -> _Reference:
        """The unpruned answer.

        Raises:
            RunError: the model cannot answer without pruning.
        """
        try:
            encoded, found = self._answer(REFERENCE)
        except FopruError as error:
            raise RunError(
                f"the unpruned model cannot answer {self.sample.name}, so there is nothing to compare with "
                f"({error}): leave the sample out"
            ) from error
        record = self._row(REFERENCE, encoded, found)
        return _Reference(replace(record, same_first=True, same_answer=True), found.logits)

    def record(self, setting: Setting, reference: _Reference) -> Record:
        """The row of a setting."""
        if setting == REFERENCE:
            return reference.record
        try:
            encoded, found = self._answer(setting)
        except (FopruError, CalibError) as error:
            return Record(self.sample.name, setting, error=str(error))
        record = self._row(setting, encoded, found)
        return replace(
            record,
            same_first=same_first(reference.logits, found.logits),
            same_answer=record.tokens == reference.record.tokens,
            divergence=divergence(reference.logits, found.logits),
        )

    def _answer(self, setting: Setting) -> tuple[Encoded, Answer]:
        bundle = self._runner.bundle(setting.precision)
        if setting.precision not in self._encoders:
            request = Request(
                self.sample.prompt,
                self._pictures,
                selector="none",
                max_new_tokens=self._runner.spec.max_new_tokens,
            )
            seed = self._runner.spec.seed, self.sample.digest
            self._encoders[setting.precision] = SampleEncoder(bundle, request, seed)
        encoder = self._encoders[setting.precision]
        encoded = encoder.encode(setting)
        key = "answer", setting.ratio
        found = answer(bundle.generator, encoder.request, encoded.images, warm_up=key not in bundle.warm)
        bundle.warm.add(key)
        return encoded, found

    def _row(self, setting: Setting, encoded: Encoded, found: Answer) -> Record:
        result = found.result
        selects = setting.selector not in ("none", "resize")
        return Record(
            sample=self.sample.name,
            setting=setting,
            before=encoded.before,
            after=sum(result.visual_tokens_after),
            kept=tuple(index for image in result.kept_indices for index in image) if selects else (),
            tokens=result.token_ids,
            text=result.text,
            correct=is_correct(result.text, self.sample.answer),
            vision=encoded.vision,
            prefill=found.prefill,
            ttft=encoded.preprocess + encoded.vision + found.embed + found.prefill,
            kv_bytes=found.kv_bytes,
        )
