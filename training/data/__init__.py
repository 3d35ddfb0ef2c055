"""Caption sets: reading them in the layouts they come in."""

from training.data.captions import CaptionData, Picture
from training.data.errors import DataError
from training.data.holdout import hold_out
from training.data.reader import read
from training.data.sentences import read_sentences

__all__ = ["CaptionData", "DataError", "Picture", "hold_out", "read", "read_sentences"]
