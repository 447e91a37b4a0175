"""etcd's v3 API over its JSON gateway: what the control plane needs of it, and no more.

One client speaks to one member. Keys and values travel as base64, 64-bit numbers as strings,
and zero or false fields are left out (https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/).
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, TypeAlias, TypeVar, cast

import requests
import urllib3

from driver.cluster.ledger.claims import Claim, Put
from driver.cluster.ledger.table import Entry

Json: TypeAlias = dict[str, Any]

_CONNECT: Final = 1.0
_QUICK: Final = 2.0
_BULK: Final = 5.0
_PAGE: Final = 250
"""Records of a prefix in one answer. etcd makes the answers for all hosts at the same time: where hundreds
ask for a large network, whole ones would come too late, and a heartbeat would wait for many of them."""
_LARGEST: Final = 64 << 20
"""Bytes of an answer that no store has a reason to exceed."""
#: Without a leader etcd would let a request wait for seconds, and a watch for ever.
_HEADERS: Final = {"Content-Type": "application/json", "Grpc-Metadata-hasleader": "true"}
_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""What comes of reading an answer that is no answer of etcd's."""
_FAULTS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, *_NONSENSE)


class EtcdError(Exception):
    """The member did not answer well. Whether a change was made anyway is unknown."""


class LeaseLost(EtcdError):
    """The lease has expired, or belonged to another store."""


class Refused(EtcdError):
    """The member works but refuses: its quota is used up, or it does not know the request."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The keys below a prefix, or those of them that were asked for."""

    entries: list[Entry]
    count: int
    """How many keys there are in all."""
    rest: str = ""
    """Where those begin that were asked for and do not fit, as etcd writes a key; empty if there are none."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What several prefixes held at one revision of one cluster."""

    cluster: str
    revision: int
    extents: Mapping[str, Extent]


C = TypeVar("C", bound=Callable[..., Any])


def _understood(call: C) -> C:
    """Turn what comes of an answer that makes no sense into an EtcdError."""

    @wraps(call)
    def checked(self: EtcdClient, *arguments: Any, **options: Any) -> Any:
        try:
            return call(self, *arguments, **options)
        except _NONSENSE as error:
            raise EtcdError(f"{self.url}: unexpected answer ({error!r:.200})") from None

    return cast("C", checked)


class EtcdClient:
    """One member of etcd, for one thread. Every call raises EtcdError when it gets no good answer."""

    def __init__(self, url: str, session: requests.Session) -> None:
        self.url = url.rstrip("/")
        self._session = session

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    @_understood
    def read_prefixes(self, since: Mapping[str, int]) -> Snapshot:
        """Return the keys below several prefixes, as of one revision and agreed on by a quorum.

        Of each prefix only those are returned that have changed after the revision given for it.
        """
        ranges = [{"request_range": {**_below(p), **_page(revision)}} for p, revision in since.items()]
        answer = self._post("kv/txn", {"success": ranges}, _BULK)
        found = [_extent(part["response_range"]) for part in answer["responses"]]
        cluster, revision = str(answer["header"]["cluster_id"]), int(answer["header"]["revision"])
        firsts = zip(since, found, strict=True)
        extents = {p: self._whole(p, first, since[p], revision) for p, first in firsts}
        return Snapshot(cluster, revision, extents)

    def _whole(self, prefix: str, first: Extent, since: int, revision: int) -> Extent:
        """Return all that was asked for below *prefix* as of *revision*; the *first* page is here already."""
        entries, page = list(first.entries), first
        while page.rest:
            if len(entries) > first.count:
                raise ValueError(f"more than {first.count} keys below {prefix}")
            rest = {**_below(prefix), **_page(since), "key": page.rest, "revision": str(revision)}
            page = _extent(self._post("kv/range", rest, _BULK))
            entries += page.entries
        return Extent(entries, first.count)

    @_understood
    def first_key(self, start: str, end: str) -> str | None:
        """Return the first key from *start* on and before *end*."""
        body = {"key": _b64(start), "range_end": _b64(end), "limit": "1", "keys_only": True}
        return next((e.key for e in _extent(self._post("kv/range", body, _QUICK)).entries), None)

    @_understood
    def sample(self, prefix: str, limit: int) -> list[Entry]:
        """Return the first *limit* records below *prefix*."""
        return _extent(self._post("kv/range", {**_below(prefix), "limit": str(limit)}, _QUICK)).entries

    @_understood
    def change(self, claims: Sequence[Claim], lease: int = 0) -> tuple[list[bool], int]:
        """Carry out *claims* in one transaction, each under its own condition.

        Returns which of the conditions held, and the revision. Puts are bound to *lease*,
        if one is given; raises LeaseLost when there is no such lease.
        """
        answer = self._post("kv/txn", {"success": [_operation(c, lease) for c in claims]}, _QUICK)
        parts: list[Json] = answer.get("responses", [])
        done = ["response_txn" not in p or bool(p["response_txn"].get("succeeded")) for p in parts]
        return done, int(answer["header"]["revision"])

    @_understood
    def remove_orphans(self, entries: Iterable[Entry], owner_key: str) -> int:
        """Remove those of *entries* that are unchanged, if *owner_key* does not exist; return how many."""
        condition = _compare(owner_key, "CREATE", create_revision="0")
        inner = [_withdrawal(e.key, e.value or "") for e in entries]
        answer = self._post("kv/txn", {"compare": [condition], "success": inner}, _QUICK)
        return sum(1 for part in answer.get("responses", []) if part["response_txn"].get("succeeded"))

    @_understood
    def grant(self, ttl: int) -> int:
        """Return a new lease of *ttl* seconds."""
        return int(self._post("lease/grant", {"TTL": str(ttl)}, _QUICK)["ID"])

    @_understood
    def keep_alive(self, lease: int) -> None:
        """Renew *lease*; raise LeaseLost when it no longer exists."""
        answer = self._post("lease/keepalive", {"ID": str(lease)}, _QUICK)
        if int(answer.get("result", {}).get("TTL", 0)) <= 0:
            raise LeaseLost(f"{self.url}: lease {lease:x} has expired")

    def revoke(self, lease: int) -> None:
        """End *lease*, and with it all that is bound to it."""
        self._post("lease/revoke", {"ID": str(lease)}, _QUICK)

    def watch(self, prefixes: Iterable[str]) -> Watch:
        """Watch several prefixes over one connection, from now on.

        Only watches "from now on" are told everything at once and in the order of revisions:
        etcd lets one that begins in the past catch up on a timer of 100 ms, each on its own.
        """
        creates = [json.dumps({"create_request": _below(p)}) for p in prefixes]
        headers = {**_HEADERS, "Connection": "close"}  # see Watch
        response = self._send("watch", "".join(creates), None, headers, stream=True)
        return Watch(self.url, response, len(creates))

    def _post(self, path: str, body: Json, timeout: float) -> Json:
        """Return the answer to *body*; it has *timeout* seconds to begin, and from then on to end."""
        deadline = time.monotonic() + timeout
        with closing(self._send(path, json.dumps(body), timeout, stream=True)) as response:
            try:
                answer: Json = json.loads(_content(response, deadline + timeout))
            except _FAULTS as error:
                raise EtcdError(f"{self.url}: {_sentence(error)}") from None
        return answer

    def _send(
        self,
        path: str,
        body: str,
        timeout: float | None,
        headers: Mapping[str, str] = _HEADERS,
        stream: bool = False,
    ) -> requests.Response:
        """Turn every fault into an EtcdError: callers change members on that one alone."""
        url = f"{self.url}/v3/{path}"
        try:
            response = self._session.post(
                url, data=body.encode(), headers=headers, timeout=(_CONNECT, timeout), stream=stream
            )
            if response.status_code != 200:
                raise _refusal(self.url, response)
        except _FAULTS as error:
            raise EtcdError(f"{self.url}: {_sentence(error)}") from None
        return response


class Watch:
    """A stream of changes. One thread reads it; any thread may interrupt it.

    All its prefixes are asked for in the body of one request. Go's server throws away what of a
    body was not read when the answer begins (net/http, chunkWriter.writeHeader), and then some
    watches would never be created: except on a connection that will not be used again.
    """

    def __init__(self, url: str, response: requests.Response, count: int) -> None:
        self._url = url
        self._response = response
        self.interrupted = False
        self._pending = count
        self._lines = response.iter_lines(chunk_size=None)
        self._early: list[list[Entry]] = []
        # Our own descriptor for the same connection: shutdown() acts on the connection
        # without touching a lock or buffer of the reading thread.
        self._socket = socket.socket(fileno=os.dup(response.raw.fileno()))
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def interrupt(self) -> None:
        """End the stream from another thread: its reader gets an EtcdError."""
        self.interrupted = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has already ended

    def close(self) -> None:
        """Release the connection; only for the reading thread."""
        self._socket.close()
        self._response.close()

    def more(self) -> bool:
        """Tell whether more has arrived, so that a reader may take it in before it acts."""
        return bool(self._poll.poll(0))

    def wait_open(self) -> None:
        """Wait until no change from now on can be missed; raise EtcdError when that fails."""
        messages = self._messages()
        while self._pending:
            self._early.append(next(messages))
        # From now on silence is normal; a dead peer is detected by the TCP options.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))

    def __iter__(self) -> Iterator[list[Entry]]:
        """Yield what has changed, message by message; ends with an EtcdError, always."""
        yield from self._early
        yield from self._messages()

    def _messages(self) -> Iterator[list[Entry]]:
        try:
            for line in self._lines:
                if line:
                    yield self._changes(json.loads(line))
        except requests.exceptions.ChunkedEncodingError:
            pass
        except _FAULTS as error:
            raise EtcdError(f"{self._url}: watch: {_sentence(error)}") from None
        raise EtcdError(f"{self._url}: watch: the connection was closed")

    def _changes(self, message: Json) -> list[Entry]:
        result = message.get("result")
        if result is not None and result.get("created"):
            self._pending -= 1
        if result is None or result.get("canceled"):
            raise _cancelled(self._url, message)
        return [_change(event) for event in result.get("events", [])]


def _content(response: requests.Response, deadline: float) -> bytes:
    """Return what was answered; raise ValueError when it is too much, or comes too slowly."""
    found = bytearray()
    while part := response.raw.read1(1 << 16):
        found += part
        if len(found) > _LARGEST:
            raise ValueError(f"the answer has more than {_LARGEST >> 20} MiB")
        if time.monotonic() > deadline:
            raise ValueError("the answer does not end")
    return bytes(found)


def _operation(claim: Claim, lease: int) -> Json:
    if not isinstance(claim, Put):
        return _withdrawal(claim.key, claim.value)
    put: Json = {"request_put": {"key": _b64(claim.key), "value": _b64(claim.value), "lease": str(lease)}}
    if not claim.if_absent:
        return put
    absent = _compare(claim.key, "CREATE", create_revision="0")
    return {"request_txn": {"compare": [absent], "success": [put]}}


def _withdrawal(key: str, value: str) -> Json:
    mine = _compare(key, "VALUE", value=_b64(value))
    return {"request_txn": {"compare": [mine], "success": [{"request_delete_range": {"key": _b64(key)}}]}}


def _compare(key: str, target: str, **operand: str) -> Json:
    return {"key": _b64(key), "target": target, "result": "EQUAL", **operand}


def _below(prefix: str) -> Json:
    """Return the range of keys that begin with *prefix*."""
    return {"key": _b64(prefix), "range_end": _b64(prefix[:-1] + chr(ord(prefix[-1]) + 1))}


def _page(since: int) -> Json:
    """Return what asks for the first records that have changed after a revision, or for the first of all."""
    changed = {"min_mod_revision": str(since + 1)} if since else {}  # etcd would look at all of them
    return {"limit": str(_PAGE), **changed}


def _extent(answer: Json) -> Extent:
    records = answer.get("kvs", [])
    rest = b64encode(b64decode(records[-1]["key"]) + b"\0").decode() if answer.get("more") else ""
    return Extent([_entry(record) for record in records], int(answer.get("count", 0)), rest)


def _entry(kv: Json) -> Entry:
    return Entry(_text(kv["key"]), _text(kv.get("value", "")), int(kv["mod_revision"]))


def _change(event: Json) -> Entry:
    entry = _entry(event["kv"])
    return Entry(entry.key, None, entry.revision) if event.get("type") == "DELETE" else entry


def _cancelled(url: str, message: Json) -> EtcdError:
    reason = message.get("result", {}).get("cancel_reason") or message.get("error", {}).get("message")
    return EtcdError(f"{url}: watch: {reason or message}")


def _refusal(url: str, response: requests.Response) -> EtcdError:
    try:
        message = str(json.loads(_content(response, time.monotonic() + _QUICK)).get("message"))[:500]
    except (*_FAULTS, AttributeError):
        message = f"HTTP {response.status_code}"
    if "lease not found" in message:
        return LeaseLost(f"{url}: {message}")
    kind = Refused if 400 <= response.status_code < 500 else EtcdError
    return kind(f"{url}: {message}")


def _sentence(error: Exception) -> str:
    """Return the innermost reason: the outer ones repeat the address."""
    reason: BaseException = error
    while (inner := getattr(reason, "reason", None) or reason.__context__) and isinstance(
        inner, BaseException
    ):
        reason = inner
    return f"{type(reason).__name__}: {reason}"


def _b64(text: str) -> str:
    return b64encode(text.encode()).decode()


def _text(encoded: str) -> str:
    return b64decode(encoded).decode(errors="replace")
