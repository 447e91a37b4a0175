"""The one place where exceptions become answers.

The engine takes every status but 200 for a failure, shows the user the text under "Err", and never
tries such a request again (moby `pkg/plugins/client.go`: callWithRetry). An IPAM answer with status
200 would be looked at for "Error" instead, so each answer has both keys and neither kind of reader
can miss it.

No error of ours is ever a 404: that status means "this plugin has no such method", which the engine
forgives for some calls, and a failure would pass for a success.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flask import Response, request
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException

import driver.wish.errors
import ipam.errors
from lib.bounded import bounded

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
"""What the engine asks for in Accept (moby `pkg/plugins/transport/mimetype.go`)."""

MAX_BODY = 1 << 20
"""Bytes. The engine's longest requests, with hundreds of published ports, are some tens of KiB."""

STATUS: Mapping[type[Exception], int] = {
    driver.wish.errors.DriverError: 500,
    driver.wish.errors.BadRequest: 400,
    driver.wish.errors.NotFound: 500,
    driver.wish.errors.Conflict: 409,
    driver.wish.errors.Unsupported: 501,
    driver.wish.errors.DiskError: 500,
    driver.wish.errors.StoreUnavailable: 503,
    driver.wish.errors.KernelError: 500,
    driver.wish.errors.DeadlineExceeded: 504,
    ipam.errors.IpamError: 500,
    ipam.errors.BadRequest: 400,
    ipam.errors.Exhausted: 409,
    ipam.errors.Conflict: 409,
    ipam.errors.NotFound: 500,
    ipam.errors.DiskError: 500,
    ValidationError: 400,
}
"""The rule of each class; a class without one of its own has that of its nearest base."""

_PROTOCOL = {
    404: "no such method: this plugin serves NetworkDriver, IpamDriver and Plugin.Activate",
    405: "only POST is served here",
    413: f"request body: it is larger than {MAX_BODY} bytes; nothing was done",
}

_SHOWN = 60
"""Characters of a wrong value in a message."""
_LONGEST = 1024
"""Bytes of a message: some repeat what came in, and the engine passes it to its own log and to the user."""


def status_of(error: BaseException) -> int | None:
    """Return the status for *error* by its nearest base that has a rule, or None."""
    return next((STATUS[base] for base in type(error).__mro__ if base in STATUS), None)


def answer(status: int, message: str) -> Response:
    """Build an answer that both the network and the IPAM half of the engine take for an error."""
    return Response(json.dumps({"Err": message, "Error": message}), status, content_type=CONTENT_TYPE)


def answer_error(error: Exception) -> Response:
    """Turn what a handler, or Flask, raised into an answer, and log it."""
    status, message = describe(error)
    message = bounded(message, _LONGEST).decode()
    log.warning("%s: %d %s", request.path[1:_SHOWN], status, message)
    return answer(status, message)


def describe(error: Exception) -> tuple[int, str]:
    """Return status and sentence for *error*.

    An unexpected one may contain anything, so only the log shows it, and the answer refers to the log.
    """
    if isinstance(error, ValidationError):
        return 400, sentence(error)
    if (status := status_of(error)) is not None:
        return status, str(error)
    if isinstance(error, HTTPException):
        code = error.code or 500
        return code, _PROTOCOL.get(code, f"request: {error.description}; nothing was done")
    reference = secrets.token_hex(4)
    log.error("internal error (ref %s)", reference, exc_info=error)
    return 500, f"internal error (ref {reference}): the plugin's log has the details"


def sentence(error: ValidationError) -> str:
    """Say in one sentence what pydantic found: field, value, expectation; the first three of them."""
    found = error.errors(include_url=False)
    parts = [_clause(detail) for detail in found[:3]]
    if len(found) > len(parts):
        parts.append(f"and {len(found) - len(parts)} more")
    return "; ".join(parts)


def _clause(detail: ErrorDetails) -> str:
    field = ".".join(str(step) for step in detail["loc"]) or "request body"
    if detail["type"] == "missing":
        return f"{field}: it is missing"
    expected = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else detail["msg"]
    return f"{field[:200]}: {_show(detail['input'])} is not valid: {expected[:1].lower()}{expected[1:]}"


def _show(value: object) -> str:
    # Cut before repr: the value may be a megabyte, and its repr four.
    shown = repr(value[: _SHOWN + 1] if isinstance(value, str | bytes) else value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
