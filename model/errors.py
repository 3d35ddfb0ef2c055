"""What can go wrong in `model`, each with a message that says what to do."""


class CaptionModelError(Exception):
    """Base of every error that `model` raises on purpose."""


class ConfigError(CaptionModelError, ValueError):
    """A configuration value is unknown or out of range."""


class CheckpointError(CaptionModelError):
    """A checkpoint folder is missing, damaged, of another format or does not fit its vocabulary."""


class EngineUnavailable(CaptionModelError):
    """The requested engine or device cannot run here (a package or a GPU is missing)."""


class ImageError(CaptionModelError):
    """Bytes that cannot be read as a picture."""


class UnsupportedMedia(ImageError):
    """No picture in a format that is read here."""


class UnsupportedVariant(ImageError):
    """A format that is read here, in a variant that is not."""


class TooLarge(ImageError):
    """More pixels than the limit."""


class TooCostly(ImageError):
    """Decoding takes more memory than it may have."""


class BrokenImage(ImageError):
    """Empty, cut off or damaged."""
