"""The one error of this package."""


class DataError(ValueError):
    """A data set cannot be read; the message says where and what to do."""
