"""The HTTP service: a picture comes in, its captions go out."""
