"""The user's own data: a folder of pictures, a JSONL file, or a Hugging Face dataset saved to disk."""

from calib.data.sample import Data, Sample, Skipped
from calib.data.source import open_data

__all__ = ["Data", "Sample", "Skipped", "open_data"]
