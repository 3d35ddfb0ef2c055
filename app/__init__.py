"""The HTTP service: a picture comes in, its captions go out."""

__version__ = "0.1.0"
