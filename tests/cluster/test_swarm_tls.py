"""Mutual TLS with a Swarm's own certificates, against the etcd that a leader runs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from driver.cluster.etcd.client import EtcdClient, EtcdError
from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.etcd.tls import Credentials, PlainSessions, TlsSessions, tls_context
from driver.swarm.etcd_process import EtcdProcess, EtcdSettings
from driver.swarm.identity import swarm_credentials
from driver.wish.errors import StoreUnavailable
from driver.wish.values import NodeId
from tests.cluster.harness import Host, endpoint, wait_until
from tests.cluster.pki import Authority, lock
from tests.cluster.relay import free_port


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("swarm") / "pki")


def serve(etcd: Path, credentials: Credentials, folder: Path, address: str = "127.0.0.1") -> EtcdProcess:
    server = EtcdProcess(EtcdSettings(str(etcd), folder, free_port(), credentials), address)
    server.start()
    if not server.wait_healthy(5):
        server.stop()
        pytest.fail("etcd did not come up")
    return server


@pytest.fixture
def server(etcd: Path, swarm: Authority, tmp_path: Path) -> Iterator[EtcdProcess]:
    made = serve(etcd, swarm.credentials("m1"), tmp_path / "etcd")
    yield made
    made.stop()


def read(url: str, sessions: PlainSessions | TlsSessions) -> None:
    client = EtcdClient(url, sessions.session())
    try:
        client.read_prefixes({"/": 0})
    finally:
        client.close()


@pytest.mark.store
def test_managers_and_workers_may_come_in(server: EtcdProcess, swarm: Authority) -> None:
    read(server.url, TlsSessions(swarm.credentials("m2")))
    read(server.url, TlsSessions(swarm.credentials("w1", "swarm-worker")))


@pytest.mark.store
def test_two_hosts_speak_over_it(server: EtcdProcess, swarm: Authority) -> None:
    hosts = []
    for name in ("a", "b"):
        sessions = TlsSessions(swarm.credentials(name, "swarm-worker"))
        hosts.append(Host(name, EtcdControlPlane(NodeId(name), lambda: [server.url], sessions)).start())
    a, b = hosts
    a.join(endpoint("a", 1))
    b.join(endpoint("b", 2))
    wait_until(lambda: b.sees(endpoint("a", 1)) and a.sees(endpoint("b", 2)))
    for host in hosts:
        host.plane.stop(leave=True)


@pytest.mark.store
def test_a_stranger_is_refused(server: EtcdProcess, swarm: Authority, tmp_path: Path) -> None:
    nobody = replace(swarm.credentials("m2"), certificate=None, key=None)
    with pytest.raises(EtcdError):  # its reason is a race between alert and reset
        read(server.url, TlsSessions(nobody))
    stranger = Authority(tmp_path / "other").node("m1")
    ours = swarm.credentials("m2")
    disguised = replace(ours, certificate=stranger / "swarm-node.crt", key=stranger / "swarm-node.key")
    with pytest.raises(EtcdError):
        read(server.url, TlsSessions(disguised))
    with pytest.raises(EtcdError):
        read(server.url.replace("https", "http"), PlainSessions())


@pytest.mark.store
def test_a_server_of_another_swarm_is_refused(server: EtcdProcess, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    with pytest.raises(EtcdError, match="certificate verify failed"):
        read(server.url, TlsSessions(other.credentials("m9")))


@pytest.mark.store
def test_a_worker_that_serves_is_refused(etcd: Path, swarm: Authority, tmp_path: Path) -> None:
    folder = swarm.node("w2", "swarm-worker")
    worker = swarm.credentials("w2", "swarm-worker")
    credentials = replace(worker, server_name=None)
    server = EtcdProcess(EtcdSettings(str(etcd), tmp_path / "etcd", free_port(), credentials), "127.0.0.1")
    server.start()
    lenient = replace(worker, server_name="swarm-worker")
    try:
        wait_until(lambda: server.alive() and succeeds(server.url, TlsSessions(lenient)))
        with pytest.raises(EtcdError, match="swarm-manager"):
            read(server.url, TlsSessions(swarm.credentials("m2")))
    finally:
        server.stop()
    assert folder.exists()


def succeeds(url: str, sessions: TlsSessions) -> bool:
    try:
        read(url, sessions)
    except EtcdError:
        return False
    return True


@pytest.mark.store
def test_nothing_but_the_client_port_is_open(server: EtcdProcess, tmp_path: Path) -> None:
    assert server._process is not None
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    mine = [line.split()[3] for line in listening.splitlines() if f"pid={server._process.pid}," in line]
    assert mine == [f"0.0.0.0:{server.url.rpartition(':')[2]}"] or mine == [
        f"*:{server.url.rpartition(':')[2]}"
    ]
    assert (tmp_path / "etcd" / "peer:0").is_socket()
    assert (tmp_path / "etcd").stat().st_mode & 0o777 == 0o700


@pytest.mark.store
def test_every_run_is_a_new_store_and_leaves_nothing(etcd: Path, swarm: Authority, tmp_path: Path) -> None:
    credentials, folder = swarm.credentials("m1"), tmp_path / "etcd"
    clusters = set()
    for _ in range(2):
        server = serve(etcd, credentials, folder)
        client = EtcdClient(server.url, TlsSessions(credentials).session())
        snapshot = client.read_prefixes({"/": 0})
        clusters.add(snapshot.cluster)
        client.close()
        server.stop()
        assert not folder.exists()
    assert len(clusters) == 2


@pytest.mark.store
def test_the_server_dies_with_its_parent(etcd: Path, swarm: Authority, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from driver.swarm.etcd_process import *; from driver.swarm.identity import *\n"
        "s = EtcdProcess(EtcdSettings(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]),"
        " swarm_credentials(Path(sys.argv[4]))), '127.0.0.1')\n"
        "s.start(); print(s._process.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            program,
            str(etcd),
            str(tmp_path / "e"),
            str(free_port()),
            str(swarm.node("m1")),
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not is_running(child))


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.store
def test_ipv6(etcd: Path, swarm: Authority, tmp_path: Path) -> None:
    server = serve(etcd, swarm.credentials("m1"), tmp_path / "etcd", "::1")
    assert server.url.startswith("https://[::1]:")
    read(server.url, TlsSessions(swarm.credentials("m2")))
    server.stop()


@pytest.mark.store
def test_a_taken_port_is_named(server: EtcdProcess, swarm: Authority, etcd: Path, tmp_path: Path) -> None:
    port = int(server.url.rpartition(":")[2])
    second = EtcdProcess(EtcdSettings(str(etcd), tmp_path / "2", port, swarm.credentials("m1")), "127.0.0.1")
    with pytest.raises(StoreUnavailable, match=f"port {port} .*PYOVERLAY_STORE_PORT"):
        second.start()
    second.stop()


def test_a_missing_binary_is_named(swarm: Authority, tmp_path: Path) -> None:
    credentials = swarm.credentials("m1")
    server = EtcdProcess(EtcdSettings("no-such-etcd", tmp_path / "e", free_port(), credentials), "127.0.0.1")
    with pytest.raises(StoreUnavailable, match=r"no-such-etcd.*PYOVERLAY_STORE"):
        server.start()
    server.stop()
    assert not (tmp_path / "e").exists()


@pytest.mark.store
def test_renewed_certificates_are_picked_up(etcd: Path, swarm: Authority, tmp_path: Path) -> None:
    serving = swarm.node("m5")
    server = serve(etcd, swarm.credentials("m5"), tmp_path / "etcd")
    sessions = TlsSessions(swarm.credentials("w5", "swarm-worker"))
    host = Host("a", EtcdControlPlane(NodeId("a"), lambda: [server.url], sessions, lease_ttl=2)).start()
    host.join(endpoint("a", 1))
    assert host.published()
    told = len(host.views)
    before = sessions.version()
    swarm.node("w5", "swarm-worker")
    swarm.node("m5", folder=serving)
    assert sessions.version() != before
    wait_until(lambda: len(host.views) >= told + 2 and host.view.connected)
    assert host.published()
    assert server.healthy()
    assert not server.outdated()
    host.plane.stop(leave=True)
    server.stop()


def test_the_key_is_cleaned_in_memory_only(swarm: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = swarm.credentials("m3")
    assert credentials.key is not None
    assert "kek-version" in credentials.key.read_text()
    written: list[Any] = []
    real = os.open

    def watch(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            written.append(path)
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", watch)
    descriptors = set(os.listdir("/proc/self/fd"))
    tls_context(credentials)
    assert not written
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


def test_only_the_swarm_is_trusted(swarm: Authority) -> None:
    context = tls_context(swarm.credentials("m3"))
    session = TlsSessions(swarm.credentials("m3")).session()
    with pytest.raises(requests.ConnectionError):
        session.get(f"https://127.0.0.1:{free_port()}")
    assert context.cert_store_stats()["x509_ca"] == 1
    adapter: Any = session.get_adapter("https://x")
    pool = adapter.poolmanager.connection_from_url("https://127.0.0.1:1")
    adapter.cert_verify(pool, "https://127.0.0.1:1", True, None)
    assert pool.ca_certs is None
    session.close()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_locked_swarm_is_explained(swarm: Authority, legacy: bool) -> None:
    folder = swarm.node("m4")
    lock(folder)
    if legacy:
        (folder / "swarm-node.key").write_text(
            "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n"
            "-----END EC PRIVATE KEY-----\n"
        )
    with pytest.raises(
        StoreUnavailable, match=r"swarm-node.key is encrypted.*autolock=false.*PYOVERLAY_STORE"
    ):
        TlsSessions(swarm_credentials(folder)).session()


@pytest.mark.parametrize("spoil", ["missing", "garbage", "mismatch", "binary"])
def test_unfit_files_are_named(swarm: Authority, spoil: str) -> None:
    credentials = swarm.credentials("m4")
    assert credentials.key is not None
    if spoil == "missing":
        credentials.key.unlink()
    elif spoil == "garbage":
        credentials.key.write_text("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n")
    elif spoil == "binary":
        credentials.key.write_bytes(b"\xff\xfe\x00")
    else:
        credentials.key.write_bytes((swarm.node("m6") / "swarm-node.key").read_bytes())
    with pytest.raises(StoreUnavailable, match=r"swarm-node.key.*PYOVERLAY_STORE"):
        TlsSessions(credentials).session()


@pytest.mark.store
def test_a_clock_beyond_the_certificates_life_holds_the_plane_off_until_it_is_right(
    server: EtcdProcess, swarm: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen from the certificate. Nothing else in the product looks at the wall clock (see pyproject)."""
    folder = swarm.node("a8", "swarm-worker", days=0)
    time.sleep(1.1)
    sessions = TlsSessions(swarm_credentials(folder))
    host = Host("a", EtcdControlPlane(NodeId("a"), lambda: [server.url], sessions)).start()
    host.join(endpoint("a", 1))
    assert not host.plane.wait_published(1)
    wait_until(lambda: any("certificate" in r.message and "clock" in r.message for r in caplog.records))
    swarm.node("a8", "swarm-worker")
    assert host.published()
    host.plane.stop(leave=True)


@pytest.mark.store
def test_unfit_files_hold_the_plane_off_until_they_are_well(
    server: EtcdProcess, swarm: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    folder = swarm.node("a7", "swarm-worker")
    lock(folder)
    sessions = TlsSessions(swarm_credentials(folder))
    host = Host("a", EtcdControlPlane(NodeId("a"), lambda: [server.url], sessions)).start()
    host.join(endpoint("a", 1))
    assert not host.plane.wait_published(1)
    wait_until(lambda: any("autolock" in r.message for r in caplog.records))
    swarm.node("a7", "swarm-worker")
    assert host.published()
    assert sum("autolock" in r.message for r in caplog.records) == 1
    host.plane.stop(leave=True)
    assert not [t for t in threading.enumerate() if t.name.startswith("store-")]
