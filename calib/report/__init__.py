"""The report of a calibration: one HTML page that needs nothing else, and its plots as PNG files."""

from calib.report.page import write_report
from calib.report.pictures import Pictures

__all__ = ["Pictures", "write_report"]
