"""A store that answers, but not as etcd does: another member is tried, and the log says once why."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from driver.cluster.etcd import client as client_module
from driver.cluster.etcd.client import EtcdClient, EtcdError
from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.etcd.tls import PlainSessions
from driver.cluster.ledger.claims import Put
from driver.cluster.ledger.codec import encode_endpoint
from driver.wish.values import NodeId
from tests.cluster.harness import EtcdBench, EtcdMember, Host, endpoint, key_of

GOOD_HEADER = {"cluster_id": "1", "revision": "5"}
RANGE = {"response_range": {"count": "1", "kvs": [{"key": "bg==", "value": "bg==", "mod_revision": "1"}]}}

ANSWERS = {
    "HTML": b"<html><body>It works!</body></html>",
    "nothing": b"",
    "half of an answer": b'{"header":{"cluster_id":"1","revision":"5"},"responses":[{"resp',
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "no text": b"\xff\xfe\x00",
    "wrong types": json.dumps({"header": [], "responses": {"a": 1}, "ID": {}, "result": 3}).encode(),
    "null fields": json.dumps({"header": None, "responses": None, "ID": None, "result": None}).encode(),
    "null records": json.dumps(
        {"header": GOOD_HEADER, "responses": [{"response_range": {"kvs": None, "count": "x"}}]}
    ).encode(),
    "keys that are no base64": json.dumps(
        {
            "header": GOOD_HEADER,
            "responses": [{"response_range": {"kvs": [{"key": "%", "mod_revision": "1"}]}}],
        }
    ).encode(),
    "a number too large": json.dumps({"header": {"cluster_id": "1", "revision": 1e999}}).encode(),
    "very deep": b"[" * 100_000,
}
"""Each is what some proxy, portal or broken program has answered, or might."""


class Stub:
    """A server that answers every request alike."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                answer(self)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = Thread(target=self.server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def stub() -> Iterator[Callable[..., Stub]]:
    made: list[Stub] = []

    def make(answer: Callable[[BaseHTTPRequestHandler], None]) -> Stub:
        made.append(Stub(answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


def always(body: bytes, status: int = 200) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def every_call(client: EtcdClient) -> list[Callable[[], object]]:
    return [
        lambda: client.read_prefixes({"/a/": 0}),
        lambda: client.change([Put("/a", "b")]),
        lambda: client.first_key("/a", "/b"),
        lambda: client.sample("/a/", 5),
        lambda: client.keep_alive(5),
        lambda: client.grant(5),
    ]


def error_of(call: Callable[[], object]) -> EtcdError | None:
    try:
        call()
    except EtcdError as error:
        return error
    return None


@pytest.mark.parametrize("name", ANSWERS)
def test_what_makes_no_sense_is_an_error_of_the_store(stub: Callable[..., Stub], name: str) -> None:
    client = EtcdClient(stub(always(ANSWERS[name])).url, PlainSessions().session())
    try:
        errors = [error for call in every_call(client) if (error := error_of(call))]
        assert len(errors) >= 2, "of reading a snapshot and asking for a lease, at the least"
        assert all(len(str(error)) < 1000 for error in errors)
    finally:
        client.close()


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_that_is_too_large_is_not_taken(
    stub: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(client_module, "_LARGEST", 1 << 20)
    client = EtcdClient(stub(always(b" " * (2 << 20), status)).url, PlainSessions().session())
    with pytest.raises(EtcdError):
        client.grant(5)
    client.close()


def test_an_answer_that_never_ends_is_given_up(
    stub: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_QUICK", 0.3)

    def trickle(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        for _ in range(1000):
            try:
                request.wfile.write(b" ")
            except OSError:
                return
            time.sleep(0.05)

    client = EtcdClient(stub(trickle).url, PlainSessions().session())
    with pytest.raises(EtcdError, match="does not end"):
        client.grant(5)
    client.close()


def test_pages_that_never_end_are_given_up(stub: Callable[..., Stub]) -> None:
    record = {"key": "bg==", "value": "bg==", "mod_revision": "1"}
    page = {"kvs": [record], "count": "3", "more": True}
    body = {"header": GOOD_HEADER, "responses": [{"response_range": page}], **page}
    client = EtcdClient(stub(always(json.dumps(body).encode())).url, PlainSessions().session())
    with pytest.raises(EtcdError, match="more than 3 keys"):
        client.read_prefixes({"/a/": 0})
    client.close()


@pytest.mark.store
@pytest.mark.parametrize("name", ["HTML", "wrong types", "very deep"])
def test_another_member_serves_while_one_talks_nonsense(
    etcd: Path, tmp_path: Path, stub: Callable[..., Stub], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench = EtcdBench(etcd, tmp_path)
    odd = stub(always(ANSWERS[name]))
    host = Host("a", EtcdControlPlane(NodeId("a"), lambda: [odd.url, bench.relay.url])).start()
    try:
        host.join(endpoint("a", 1))
        assert host.published(10)
        told = [r for r in caplog.records if r.levelno >= logging.WARNING and odd.url in r.getMessage()]
        assert len(told) == 1
    finally:
        host.plane.stop(leave=False)
        bench.close()


@pytest.fixture
def member(etcd: Path, tmp_path: Path) -> Iterator[EtcdMember]:
    bench = EtcdBench(etcd, tmp_path)
    yield bench.member
    bench.close()


@pytest.mark.store
def test_a_network_is_read_page_by_page(member: EtcdMember, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_PAGE", 7)
    client = EtcdClient(member.url, PlainSessions().session())
    records = [endpoint("x", number) for number in range(50)]
    client.change([Put(key_of(r), encode_endpoint(r)) for r in records])
    prefix = key_of(records[0]).rpartition("/")[0] + "/"
    snapshot = client.read_prefixes({prefix: 0, "/pyoverlay/v1/nodes/": 0})
    assert {e.key for e in snapshot.extents[prefix].entries} == {key_of(r) for r in records}
    assert (snapshot.extents[prefix].count, len(snapshot.extents[prefix].entries)) == (50, 50)
    client.change([Put(key_of(r), encode_endpoint(r)) for r in records[10:30]])
    changed = client.read_prefixes({prefix: snapshot.revision}).extents[prefix]
    assert {e.key for e in changed.entries} == {key_of(r) for r in records[10:30]}
    assert changed.count == 50
    client.close()


@pytest.mark.store
def test_one_connection_serves_many_requests(member: EtcdMember, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "urllib3.connectionpool")
    client = EtcdClient(member.url, PlainSessions().session())
    for _ in range(20):
        client.read_prefixes({"/pyoverlay/v1/nodes/": 0})
        client.keep_alive(client.grant(60))
    assert sum("Starting new" in record.getMessage() for record in caplog.records) == 1
    client.close()
