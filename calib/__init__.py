"""Choose ratio, selector and precision from the user's own data.

python -m calib.ratio BUNDLE --data DIR       how low can the ratio go?
python -m calib.quantize BUNDLE --data DIR    fewer bits
python -m calib.joint BUNDLE ... --data DIR   both
"""

from __future__ import annotations

__all__: list[str] = []
