"""The real process on a real socket: it starts fast, bears abuse, heals itself and goes when told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plugin.server import EXIT_RESTART, PATIENCE
from tests.contract.engine import accept, refusal
from tests.contract.process import Server, children, eventually, head, read, running
from tests.contract.samples import sample
from tests.contract.stub import SLOW


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One process for the tests that leave it alive; it must still be the same worker in the end."""
    with running(tmp_path_factory.mktemp("server")) as server:
        worker = server.worker()
        yield server
        server.oper_info()
        assert server.worker() == worker
        assert "Traceback" not in server.log.read_text()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A process to kill."""
    with running(tmp_path) as server:
        yield server


def test_the_first_answer_comes_within_a_second(tmp_path: Path) -> None:
    """The engine waits 9.5 s (manager_linux.go: pluginPostStart), and a machine that boots is slow."""
    with running(tmp_path) as server:
        seconds = time.monotonic() - server.started
        print(f"first answer after {seconds:.3f} s")
        assert seconds < 9, "a second on an idle machine"
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600


def test_who_computes_does_not_hold_up_the_others(server: Server) -> None:
    """A call makes dozens of system calls, and after each waits until the computing thread lets it go on."""
    request = sample("NetworkDriver.Join", EndpointID="busy")
    with ThreadPoolExecutor(1) as pool:
        computes = pool.submit(server.call, "NetworkDriver.Join", json.dumps(request).encode())
        eventually(lambda: "joining busy" in server.log.read_text())
        took = []
        while not computes.done():
            took.append(server.oper_info())
    assert min(took[:-1]) < 0.015, "with Python's own turns of 5 ms it is 38 ms, with ours 2"


@pytest.mark.parametrize(
    "host", ["plugin.moby.localhost", "", "/run/docker/plugins/a.sock", "%2Frun%2F", "a b"]
)
def test_trap_host_means_nothing(server: Server, host: str) -> None:
    """Engines up to 20.10.25 send an empty Host, others the socket's path."""
    method = "NetworkDriver.GetCapabilities"
    accept(method, None, *server.call(method, host=host))


def test_trap_2_garbage_before_the_application_gets_json(server: Server) -> None:
    """What gunicorn itself refuses is answered in JSON too."""
    for request, status in (
        (b"GARBAGE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"POST /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"POST / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\n" + b"".join(b"X%d: 1\r\n" % i for i in range(1000)) + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: nonsense\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST / HTTP/7.9\r\n\r\n", 400),
    ):
        with server.connect() as client:
            with contextlib.suppress(BrokenPipeError):
                client.sendall(request)
            answered, body = read(client)
        assert refusal(body)
        assert answered == status, request[:60]


def test_trap_4_a_truncated_body_is_refused(server: Server) -> None:
    """The sender hung up in the middle: half a request is none."""
    with server.connect() as client:
        client.sendall(head("NetworkDriver.Leave", 100) + b'{"NetworkID": "a", "EndpointID": "b"}')
        client.shutdown(socket.SHUT_WR)
        status, body = read(client)
    assert status == 400
    assert "stopped coming" in refusal(body)


def test_trap_5_no_connection_is_kept(server: Server) -> None:
    """A second request on a connection would meet its end; the engine's retry of it has no body."""
    with server.connect() as client:
        client.sendall(head("NetworkDriver.GetCapabilities", 0) * 5 + b"\0garbage\r\n\r\n")
        status, body = read(client)
    accept("NetworkDriver.GetCapabilities", None, status, body)
    assert body.count(b"Scope") == 2, "one answer: Scope and ConnectivityScope"


def test_trap_24_dial_probes_are_borne(server: Server) -> None:
    """The engine connects and closes to see whether the plugin is there."""
    for _ in range(200):
        server.connect().close()
    assert server.oper_info() < 9


def test_chunked_bodies_are_read(server: Server) -> None:
    """No engine sends them, but curl may."""
    body = json.dumps(sample("NetworkDriver.Leave")).encode()
    with server.connect() as client:
        head_lines = b"POST /NetworkDriver.Leave HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head_lines + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        assert read(client) == (200, b"{}")


def test_a_huge_body_is_refused_unread(server: Server) -> None:
    with server.connect() as client:
        client.sendall(head("NetworkDriver.Leave", 1 << 40))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(b"a" * (8 << 20))
        status, body = read(client)
    assert status == 413
    assert refusal(body)


def test_trap_26_slow_calls_hold_up_nobody(server: Server) -> None:
    """Sixteen containers that start at a time, while the engine asks for another one's info."""

    def join(number: int) -> None:
        request = sample("NetworkDriver.Join", EndpointID=f"slow{number}")
        accept(
            "NetworkDriver.Join", request, *server.call("NetworkDriver.Join", json.dumps(request).encode())
        )

    started = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        joins = [pool.submit(join, number) for number in range(16)]
        eventually(lambda: server.log.read_text().count("joining slow") == 16)
        assert min(server.oper_info() for _ in range(5)) < SLOW / 3
        for each in joins:
            each.result()
    assert time.monotonic() - started < 8 * SLOW, "not one after the other"


def test_silence_holds_up_nobody(server: Server) -> None:
    """Half a request, half a header, nothing at all: each is hung up on, and meanwhile others are served."""
    halves = (b"", b"POST /Networ", head("NetworkDriver.Leave", 100) + b'{"NetworkID": ')
    clients = [server.connect() for _ in range(24)]
    for number, client in enumerate(clients):
        client.sendall(halves[number % 3])
    assert max(server.oper_info() for _ in range(10)) < 9
    for number, client in enumerate(clients):
        client.settimeout(PATIENCE * 3)
        if number % 3 == 2:
            status, body = read(client)
            assert status == 400
            assert "stopped coming" in refusal(body)
        else:
            assert client.recv(1) == b""
        client.close()


def test_a_client_that_does_not_hang_up_holds_up_nobody(server: Server) -> None:
    """It has its answer; whether it closes is its own affair."""
    clients = [server.connect() for _ in range(8)]
    for client in clients:
        client.sendall(head("NetworkDriver.GetCapabilities", 0))
    assert max(server.oper_info() for _ in range(10)) < 9
    for client in clients:
        client.close()


def test_a_killed_worker_is_replaced(own_server: Server) -> None:
    """Whoever calls meanwhile waits in the socket's queue and is served."""
    worker = own_server.worker()
    os.kill(worker, signal.SIGKILL)
    seconds = own_server.oper_info()
    print(f"served {seconds:.3f} s after the worker was killed")
    assert seconds < 9
    assert own_server.worker() != worker
    assert own_server.stop() < 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_goes_when_told(own_server: Server, number: signal.Signals) -> None:
    """dockerd kills after 10 s; the runtime is stopped, the status is 0 and the socket's file is gone."""
    seconds = own_server.stop(number)
    print(f"gone {seconds:.3f} s after {number.name}")
    assert seconds < 9
    assert own_server.process.returncode == 0
    assert not own_server.socket.exists()
    assert "runtime stopped" in own_server.log.read_text()


def test_it_goes_though_a_call_hangs(own_server: Server) -> None:
    """A handler that never ends is left behind, and the runtime is stopped all the same."""
    request = sample("NetworkDriver.Join", EndpointID="stuck")
    body = json.dumps(request).encode()
    with own_server.connect() as client:
        client.sendall(head("NetworkDriver.Join", len(body)) + body)
        eventually(lambda: "joining stuck" in own_server.log.read_text())
        assert own_server.stop() < 10, "then dockerd kills"
    assert not own_server.socket.exists()
    assert "runtime stopped" in own_server.log.read_text()


def test_a_call_under_way_is_finished(own_server: Server) -> None:
    """An answer that gets lost is a call that the engine repeats, with an empty body."""
    request = sample("NetworkDriver.Join", EndpointID="slow")
    body = json.dumps(request).encode()
    with own_server.connect() as client:
        client.sendall(head("NetworkDriver.Join", len(body)) + body)
        eventually(lambda: "joining slow" in own_server.log.read_text())
        own_server.process.send_signal(signal.SIGTERM)
        accept("NetworkDriver.Join", request, *read(client))
    own_server.process.wait(30)


def test_it_ends_by_itself_when_the_runtime_asks(own_server: Server) -> None:
    """So that whoever started it starts it again, and the engine asks for the capabilities again."""
    request = {"DiscoveryType": 1, "DiscoveryData": {"Address": "192.0.2.75", "Self": True}}
    method = "NetworkDriver.DiscoverNew"
    accept(method, request, *own_server.call(method, json.dumps(request).encode()))
    assert own_server.process.wait(30) == EXIT_RESTART
    assert not own_server.socket.exists()
    assert "the test wants it" in own_server.log.read_text()


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGTTIN", "SIGTTOU", "SIGWINCH"])
def test_no_signal_makes_a_second_worker(own_server: Server, name: str) -> None:
    """gunicorn's reload would have two writers of one state for a while."""
    worker = own_server.worker()
    own_server.process.send_signal(signal.Signals[name])
    time.sleep(0.5)
    own_server.oper_info()
    assert own_server.worker() == worker


@pytest.mark.kernel
def test_as_process_1_it_reaps_orphans_and_goes_when_told(tmp_path: Path) -> None:
    """Nobody else does in the plugin's namespace, and there the kernel drops signals without a handler."""
    with running(tmp_path, "unshare", "--pid", "--fork", "--mount-proc", "--kill-child") as server:
        (inside,) = children(server.process.pid)
        enter = ["nsenter", f"--target={inside}", "--pid", "--mount"]
        # The shell is gone before its child ends.
        subprocess.run([*enter, "sh", "-c", "sleep 1 & sleep 1 & exit"], check=True)
        assert len(children(inside)) == 3
        eventually(lambda: len(children(inside)) == 1)
        os.kill(inside, signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert not server.socket.exists()


def test_a_second_process_is_refused(own_server: Server) -> None:
    """A live server keeps its socket; the newcomer says so and ends."""
    process = own_server.start()
    assert process.wait(30) != 0
    assert "another process is serving on it" in own_server.log.read_text()
    own_server.oper_info()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    """What a process left behind that was killed, arbiter and all."""
    with running(tmp_path) as server:
        worker = server.worker()
        server.process.kill()
        server.process.wait()
        assert server.socket.exists()
        server.process = server.start()
        eventually(server.oper_info)
        assert server.stop() < 9
    eventually(lambda: not Path(f"/proc/{worker}").exists())


def test_state_that_cannot_be_used_ends_the_process(tmp_path: Path) -> None:
    """One sentence and no traceback; no worker is tried again and again."""
    (tmp_path / "damaged").touch()
    server = Server(tmp_path)
    assert server.process.wait(30) == 3
    log = server.log.read_text()
    assert "cannot start: state.json: it is damaged; move it away" in log
    assert "Traceback" not in log
    assert not server.socket.exists()


@pytest.mark.parametrize("most", [2000, 5000])
def test_as_many_files_may_be_open_as_is_possible(tmp_path: Path, most: int) -> None:
    """Under systemd the limit that counts is 1,024, though a program may raise it."""
    with running(tmp_path, "prlimit", f"--nofile=500:{most}") as server:
        for process in (server.process.pid, server.worker()):
            limits = Path(f"/proc/{process}/limits").read_text()
            (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
            assert line.split()[3:5] == [str(most), str(most)]
    told = f"only {most} files may be open" in server.log.read_text()
    assert told == (most < 4096)
