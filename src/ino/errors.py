"""Errors that a user can fix. The command line prints the message and exits with status 2.

A message says what was expected, what was found and what to do, in one sentence.
"""


class InoError(Exception):
    """Base class of all errors that a user can fix."""


class VideoError(InoError):
    """A video, or a folder of videos or frames, cannot be used."""


class MaskError(InoError):
    """A mask, or a folder of masks, cannot be used."""


class PromptError(InoError):
    """A box or a click cannot be used."""


class DatasetError(InoError):
    """A data set's folders are not as its layout says."""


class CheckpointError(InoError):
    """A file of weights cannot be used."""


class ConfigError(InoError):
    """An option, a recipe or a protocol holds a value that cannot be used."""


class OutputError(InoError):
    """A result cannot be written."""


class TrainingError(InoError):
    """Training cannot go on."""


class StoppedError(Exception):
    """Training was asked to stop by a signal and did; `status` is the command's exit status.

    It is not an `InoError`, as KeyboardInterrupt is not an Exception: code that continues after a
    failed run must not continue after this.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status
