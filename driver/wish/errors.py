"""Every error with which the driver refuses.

The edge turns a class into an HTTP answer by walking its bases, so a new error
belongs below the class that has the right meaning for the caller::

    DriverError
    ├── BadRequest        the request is wrong; the message names field, value and remedy
    ├── NotFound          the engine names an object that this host does not know
    ├── Conflict          an address, VNI or name is taken
    ├── Unsupported       this host or engine cannot do it
    ├── DiskError         state on disk is damaged, newer than this program, or not writable
    ├── StoreUnavailable  the control plane's store cannot be reached or trusted
    └── KernelError       the kernel refused an operation
        └── DeadlineExceeded  the kernel work was not done in time
"""

from __future__ import annotations


class DriverError(Exception):
    """Base of all errors that carry a sentence for the user."""


class BadRequest(DriverError):
    """The request is wrong, and would be wrong again."""

    @classmethod
    def field(cls, name: str, value: object, remedy: str) -> BadRequest:
        """Build the standard sentence: which field, what value, what to do."""
        return cls(f"{name}: {value!r} is not valid: {remedy}")


class NotFound(DriverError):
    """An object that the call refers to is not known on this host."""


class Conflict(DriverError):
    """Something else holds what the call asks for."""


class Unsupported(DriverError):
    """This kernel, engine or mode of operation cannot do what is asked."""


class DiskError(DriverError):
    """The state on disk cannot be read or written."""


class StoreUnavailable(DriverError):
    """The control plane's store cannot be reached, or we cannot prove who we are."""


class KernelError(DriverError):
    """The kernel refused an operation; *errno* is its reason (0 when there is none)."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class DeadlineExceeded(KernelError):
    """The kernel work was not finished in the time that a driver call may take."""


def unforeseen(error: Exception) -> Exception | None:
    """Return *error* unless it carries a sentence for the user: then its traceback is worth logging."""
    return None if isinstance(error, DriverError) else error
