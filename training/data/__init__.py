"""Caption sets: reading them in the layouts they come in."""

from training.data.captions import CaptionData, DataError, Picture
from training.data.reader import hold_out, read
from training.data.sentences import read_sentences

__all__ = ["CaptionData", "DataError", "Picture", "hold_out", "read", "read_sentences"]
