"""Everything `calib` raises on purpose.

    CalibError
    ├── OptionError   an option has a value outside its range, or options contradict each other
    ├── DataError     the data cannot be read, or nothing of it can be used
    ├── StoreError    earlier results are damaged, or belong to another run
    ├── RunError      a measurement or a conversion could not be finished
    └── OutputError   a bundle cannot be written where it was asked for

Every message is one sentence with the value got, the values allowed, and the way out.
"""

from __future__ import annotations

__all__ = ["CalibError", "DataError", "OptionError", "OutputError", "RunError", "StoreError"]


class CalibError(Exception):
    """Base of every error `calib` raises on purpose."""


class OptionError(CalibError):
    """An option has a value outside its range, or options contradict each other."""


class DataError(CalibError):
    """The data cannot be read, or nothing of it can be used."""


class StoreError(CalibError):
    """Earlier results are damaged, or belong to another run."""


class RunError(CalibError):
    """A measurement or a conversion could not be finished."""


class OutputError(CalibError):
    """A bundle cannot be written where it was asked for."""
