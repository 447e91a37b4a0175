"""What can go wrong in address management, worded for people.

Every error names the *field* the engine (or the user) filled in, the *value* found there, the
*problem* and the *remedy*. The engine passes the sentence on to the user unchanged, but never the
type: for a remote IPAM `errors.Is(err, ErrNoAvailableIPs)` is always false in the engine.
"""

from __future__ import annotations

_SHOWN = 100
"""Characters of a value that are repeated in a message: a request may hold megabytes."""


def _show(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


class IpamError(Exception):
    """Base of all errors of this package.

    *field* is the wire's or the command line's name of what is wrong, *value* what was found there,
    *problem* a clause that says why it is refused, *remedy* a clause that says what to do instead.
    """

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(f'{field} "{_show(value)}": {problem}; {remedy}')
        self.field = field
        self.value = value
        self.problem = problem
        self.remedy = remedy


class BadRequest(IpamError):
    """The request itself can never succeed: a value that does not parse or contradicts another."""


class Exhausted(IpamError):
    """Nothing is left to give out: no default pool, or no address in the pool."""


class Conflict(IpamError):
    """What was asked for by name belongs to somebody else: an overlapping pool, a live address."""


class NotFound(IpamError):
    """The pool is not known and cannot safely be recreated from its id."""


class DiskError(IpamError):
    """The state file cannot be read, trusted or written. It was left as it is."""
