"""`python -m runtime.device_report BUNDLE`: what this device makes of a bundle, to send back.

Needs the bundle, this runtime and a backend, no network. `record` says what is in a report, `machine` asks
the device what it is, `measure` runs one backend, `page` writes it down for people.
"""

from __future__ import annotations

__all__: list[str] = []
