"""Everything that vstream_ros raises on purpose.

Each class names the ``error_code`` constant of ``srv/AskVideo`` that it becomes, so that the node translates by
name and neither side holds a table. A message says what is wrong and what to do about it.
"""


class VStreamError(Exception):
    """Base of the family. ``code`` is the name of a constant of ``vstream_ros/srv/AskVideo``."""

    code = "INTERNAL"

    def __init__(self, message: str, *, answer: str = "") -> None:
        """``answer``: the text generated before the failure (a timeout keeps what there is)."""
        super().__init__(message)
        self.answer = answer


class NotReadyError(VStreamError):
    """The model is still loading, or the node is inactive: ask again later."""

    code = "NOT_READY"


class ModelFailedError(VStreamError):
    """The model could not be loaded, or what it computes is no answer."""

    code = "MODEL_FAILED"


class InvalidRequestError(VStreamError, ValueError):
    """The request can never succeed as it stands."""

    code = "INVALID_REQUEST"


class ConfigError(InvalidRequestError):
    """A parameter's value is out of its range; the message names the parameter and the value."""


class FrameError(InvalidRequestError):
    """An image that can't be read, sized or stored; it is counted and dropped."""


class MemoryFileError(InvalidRequestError):
    """A saved memory that can't be written or read; what memory holds, and the file of before, are as they were."""


class NoMemoryFileError(MemoryFileError):
    """There is no saved memory of that name."""


class NoFramesError(VStreamError):
    """The memory holds no frame that the question is about."""

    code = "NO_FRAMES"


class BusyError(VStreamError):
    """The queue of questions is full."""

    code = "BUSY"


class QuestionTimeoutError(VStreamError):
    """The question's time ran out; ``answer`` holds the text so far."""

    code = "TIMEOUT"


class CanceledError(VStreamError):
    """The question was cancelled, or the memory it asked about was cleared."""

    code = "CANCELED"


class IncompleteAnswerError(VStreamError):
    """``max_new_tokens`` cut an answer that had to be valid as a whole; ``answer`` holds what there is of it."""

    code = "INCOMPLETE"


class OutOfMemoryError(VStreamError):
    """The device ran out of memory; the caches were dropped, the frames are kept."""

    code = "OUT_OF_MEMORY"
