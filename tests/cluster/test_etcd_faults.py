"""The etcd back end while a real three-member etcd 3.5 is treated badly."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from driver.cluster.etcd.client import EtcdClient, EtcdError
from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.etcd.tls import PlainSessions
from driver.cluster.ledger.codec import (
    encode_endpoint,
    encode_leader,
    encode_service,
    leader_key,
    node_key,
    service_key,
)
from driver.wish.values import EndpointId, NetworkId, NodeId
from tests.cluster.harness import (
    NET,
    NET2,
    EtcdBench,
    EtcdMember,
    Host,
    b64,
    endpoint,
    key_of,
    service,
    start_members,
    wait_until,
)
from tests.cluster.relay import Relay, free_port

pytestmark = pytest.mark.store

MakeHost = Callable[..., Host]
E1, E2 = endpoint("a", 1), endpoint("b", 2)


@pytest.fixture
def members(etcd: Path, tmp_path: Path) -> Iterator[list[EtcdMember]]:
    made = start_members(etcd, tmp_path / "cluster", 3)
    yield made
    for member in made:
        member.kill()


@pytest.fixture
def bench(etcd: Path, tmp_path: Path) -> Iterator[EtcdBench]:
    made = EtcdBench(etcd, tmp_path)
    yield made
    made.close()


@pytest.fixture
def host() -> Iterator[MakeHost]:
    """Make a host on members (given first to last, as the test wants them to be tried)."""
    hosts: list[Host] = []

    def make(name: str, *urls: str, **options: Any) -> Host:
        made = Host(name, EtcdControlPlane(NodeId(name), lambda: urls, **options)).start()
        hosts.append(made)
        return made

    yield make
    for made in hosts:
        made.plane.stop(leave=False)


def by_leadership(members: list[EtcdMember]) -> tuple[EtcdMember, list[EtcdMember]]:
    wait_until(lambda: any(m.is_leader() for m in members))
    leader = next(m for m in members if m.is_leader())
    return leader, [m for m in members if m is not leader]


def still_speak(a: Host, b: Host, number: int, timeout: float = 30) -> float:
    """Publish one more record on a; return how long until b has seen it."""
    start = time.monotonic()
    new = endpoint(a.name, number)
    a.publish(endpoints=a.wish.endpoints | {new})
    wait_until(lambda: b.view.connected and b.sees(new), timeout)
    return time.monotonic() - start


def test_the_leader_is_killed(members: list[EtcdMember], host: MakeHost) -> None:
    leader, others = by_leadership(members)
    a = host("a", leader.url, *(m.url for m in others))
    b = host("b", *(m.url for m in reversed(others)), leader.url)
    a.join(E1)
    b.join(E2)
    wait_until(lambda: a.sees(E2) and b.sees(E1))
    leader.kill()
    still_speak(a, b, 10)
    assert a.sees(E2)
    assert b.sees(E1)
    leader.start()
    wait_until(leader.ready)
    still_speak(b, a, 11)


def test_a_member_that_hangs_is_given_up(members: list[EtcdMember], host: MakeHost) -> None:
    _, others = by_leadership(members)
    a = host("a", others[0].url, others[1].url)
    b = host("b", others[1].url)
    a.join(E1)
    b.join(E2)
    wait_until(lambda: a.sees(E2) and b.sees(E1) and a.plane.wait_published(1))
    others[0].signal(signal.SIGSTOP)
    wait_until(lambda: not a.view.connected)
    new = endpoint("b", 20)
    b.join(E2, new)
    wait_until(lambda: a.view.connected and a.sees(new))


def test_a_put_to_a_member_that_hangs_goes_to_another(members: list[EtcdMember], host: MakeHost) -> None:
    _, others = by_leadership(members)
    a = host("a", others[0].url, others[1].url)
    b = host("b", others[1].url)
    a.join(E1)
    b.join(E2)
    wait_until(lambda: a.sees(E2) and b.sees(E1) and a.plane.wait_published(1))
    others[0].signal(signal.SIGSTOP)
    still_speak(a, b, 30)


def test_without_a_quorum_all_is_frozen_and_nothing_lost(members: list[EtcdMember], host: MakeHost) -> None:
    a = host("a", members[0].url, lease_ttl=4)
    b = host("b", members[0].url, members[1].url, members[2].url, lease_ttl=4)
    a.join(E1)
    b.join(E2)
    wait_until(lambda: a.sees(E2) and b.sees(E1) and len(a.view.nodes) == 2)
    members[1].kill()
    members[2].kill()
    wait_until(lambda: not a.view.connected and not b.view.connected)
    assert a.sees(E2)
    assert len(a.view.nodes) == 2
    new = endpoint("a", 40)
    a.join(E1, new)
    assert not a.plane.wait_published(1)
    time.sleep(4)
    assert len(a.view.nodes) == 2, "longer than a lease, but nobody has died"
    members[1].start()
    wait_until(lambda: a.view.connected and b.view.connected and b.sees(new))
    wait_until(lambda: len(b.view.nodes) == 2)


def test_a_host_that_dies_leaves_its_records_but_not_its_node(bench: EtcdBench, host: MakeHost) -> None:
    other = Relay(bench.member.port)
    a = host("a", bench.relay.url, lease_ttl=2)
    b = host("b", other.url, lease_ttl=2)
    a.join(E1)
    b.join(E2)
    wait_until(lambda: b.sees(E1) and NodeId("a") in b.view.nodes)
    bench.relay.cut()
    wait_until(lambda: NodeId("a") not in b.view.nodes)
    assert b.sees(E1)
    bench.relay.mend()
    wait_until(lambda: NodeId("a") in b.view.nodes)
    b.plane.stop(leave=False)
    other.close()


def test_records_of_a_host_long_dead_are_removed(bench: EtcdBench, host: MakeHost) -> None:
    dead, moved = endpoint("d", 50), endpoint("d", 51)
    for record in (dead, moved):
        bench.put(key_of(record), encode_endpoint(record))
    began = time.monotonic()
    a = host("a", bench.relay.url, lease_ttl=1, orphan_grace=1.0)
    a.join(E1)
    b = host("b", bench.relay.url, lease_ttl=1, orphan_grace=1.0)
    b.join(E2)
    wait_until(lambda: a.sees(dead))
    wait_until(lambda: a.sees_none(dead) and a.sees_none(moved))
    assert time.monotonic() - began >= 1
    left = {key_of(E1), key_of(E2), node_key(NodeId("a")), node_key(NodeId("b"))}
    wait_until(lambda: bench.dump().keys() == left)  # a lease of one second is lost now and then


def test_what_is_left_of_networks_that_nobody_has_is_removed(bench: EtcdBench, host: MakeHost) -> None:
    """They were removed while their hosts were away: nobody follows them."""
    lost, kept = NetworkId("lost"), NetworkId("kept")
    old = [endpoint("a", 50, lost), *(endpoint(f"dead{i}", 51 + i, lost) for i in range(100))]
    for record in old:
        bench.put(key_of(record), encode_endpoint(record))
    for speaker in ("a", "dead1"):
        said = service(1, 11, network=lost)
        bench.put(service_key(NodeId(speaker), said), encode_service(said))
    bench.put(leader_key(lost), encode_leader(NodeId("dead1")))
    bench.put("/pyoverlay/v1/later", "of a version to come")
    b = host("b", bench.relay.url, lease_ttl=1, orphan_grace=60.0)
    b.join(E2, endpoint("b", 52, kept), networks=(NET, kept))
    assert b.published()
    a = host("a", bench.relay.url, lease_ttl=1, orphan_grace=1.0)
    a.join(E1)
    assert a.published()
    wait_until(lambda: not any("/lost/" in key for key in bench.dump()))
    left = {
        *map(key_of, (E1, E2, endpoint("b", 52, kept))),
        *(node_key(NodeId(name)) for name in "ab"),
        "/pyoverlay/v1/later",
    }
    wait_until(lambda: bench.dump().keys() == left)  # a lease of one second is lost now and then


def test_when_most_hosts_seem_dead_nothing_is_removed(bench: EtcdBench, host: MakeHost) -> None:
    others = [endpoint(name, 10 + i) for i, name in enumerate("xyz")]
    for record in others:
        bench.put(key_of(record), encode_endpoint(record))
    a = host("a", bench.relay.url, lease_ttl=1, orphan_grace=0.5)
    a.join(E1)
    assert a.published()
    time.sleep(2.5)
    assert all(a.sees(record) for record in others)


def test_a_lease_that_is_lost_is_taken_anew(
    bench: EtcdBench, host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    a = host("a", bench.relay.url, lease_ttl=2)
    a.join(E1)
    assert a.published()
    (lease,) = bench.member.call("lease/leases")["leases"]
    revision = node_revision(bench)
    bench.member.call("lease/revoke", ID=lease["ID"])  # its keys go with it
    wait_until(lambda: node_revision(bench) > revision)
    (another,) = bench.member.call("lease/leases")["leases"]
    assert another != lease


def node_revision(bench: EtcdBench) -> int:
    """When the record of host a was made; 0 while there is none."""
    found = bench.member.call("kv/range", key=b64(node_key(NodeId("a")))).get("kvs", [])
    return int(found[0]["create_revision"]) if found else 0


def test_a_host_that_stops_for_an_upgrade_is_not_taken_for_dead(bench: EtcdBench, host: MakeHost) -> None:
    """Its record outlives the lease; after the new start it is under a short one again."""
    a, b = host("a", bench.relay.url, lease_ttl=2), host("b", bench.relay.url)
    a.join(E1)
    b.join(E2)
    assert a.published()
    wait_until(lambda: b.sees(E1))
    a.plane.stop(leave=False)
    time.sleep(4)
    assert b.sees(E1)
    assert NodeId("a") in b.view.nodes
    again = host("a", bench.relay.url, lease_ttl=2)
    again.join(E1)
    assert again.published()
    bench.relay.cut()
    wait_until(lambda: node_key(NodeId("a")) not in bench.dump())


def test_leaving_revokes_the_lease_and_staying_does_not(bench: EtcdBench, host: MakeHost) -> None:
    a = host("a", bench.relay.url)
    a.join(E1)
    assert a.published()
    a.plane.stop(leave=False)
    assert len(bench.member.call("lease/leases")["leases"]) == 1
    b = host("b", bench.relay.url)
    b.join(E2)
    assert b.published()
    b.plane.stop(leave=True)
    assert len(bench.member.call("lease/leases")["leases"]) == 1


def test_the_past_is_compacted_while_away_and_under_the_watch(bench: EtcdBench, host: MakeHost) -> None:
    other = Relay(bench.member.port)
    a, b = host("a", bench.relay.url), host("b", other.url)
    a.join(E1)
    b.join(E2)
    wait_until(lambda: a.sees(E2) and b.sees(E1))
    bench.relay.cut()
    wait_until(lambda: not a.view.connected)
    new = endpoint("b", 60)
    b.join(new)
    wait_until(lambda: b.sees(new) and b.sees_none(E2))
    compact(bench.member)
    bench.relay.mend()
    wait_until(lambda: a.view.connected and a.sees(new) and a.sees_none(E2))
    still_speak(b, a, 61)
    compact(bench.member)
    a.publish(networks=a.wish.networks | {NET2})
    assert a.published()
    still_speak(b, a, 62)
    b.plane.stop(leave=False)
    other.close()


def compact(member: EtcdMember) -> None:
    revision = member.call("kv/put", key=b64("/elsewhere"), value="")["header"]["revision"]
    member.call("kv/compaction", revision=revision, physical=True)


def test_the_same_cluster_restarted_empty_is_a_new_store(etcd: Path, tmp_path: Path, host: MakeHost) -> None:
    (member,) = start_members(etcd, tmp_path / "one", 1)
    try:
        a, b = host("a", member.url), host("b", member.url)
        for i in range(5):
            a.join(E1, endpoint("a", 70 + i))
            assert a.published()
        b.join(E2)
        wait_until(lambda: b.sees(E1) and a.sees(E2))
        member.kill()
        member.wipe()
        member.start()  # the same token: the same cluster id, with revisions from 1 again
        wait_until(lambda: a.view.connected and b.view.connected and len(member.dump()) == 5)
        assert a.published()
        assert b.published()
        still_speak(a, b, 80)
    finally:
        member.kill()


def test_a_host_that_comes_to_a_new_store_last_takes_no_address_back(
    bench: EtcdBench, host: MakeHost
) -> None:
    other = Relay(bench.member.port)
    a, b = host("a", other.url), host("b", bench.relay.url)
    mine = replace(E1, claimed=1_000)
    theirs = replace(E1, node=NodeId("b"), endpoint=EndpointId("theirs"), claimed=2_000)
    a.join(mine)
    b.join(E2)
    wait_until(lambda: b.sees(mine))
    other.cut()
    wait_until(lambda: not a.view.connected)
    b.join(E2, theirs)
    assert b.published()
    bench.replace()
    wait_until(lambda: b.view.connected and len(bench.dump()) == 3)
    other.target = bench.member.port
    other.mend()
    assert a.published()
    assert bench.dump()[key_of(mine)] == encode_endpoint(theirs)
    wait_until(lambda: a.sees(theirs))
    a.plane.stop(leave=False)
    other.close()


def test_silence_is_noticed(bench: EtcdBench, host: MakeHost) -> None:
    """A relay that takes everything and passes on nothing: what TCP's probes do not see."""
    a = host("a", bench.relay.url)
    a.join(E1)
    assert a.published()
    bench.relay.clog()
    wait_until(lambda: not a.view.connected)
    bench.relay.cut()
    bench.relay.mend()
    wait_until(lambda: a.view.connected)


def test_a_store_that_is_full_is_complained_of_once_and_read_on(
    etcd: Path, tmp_path: Path, host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    (member,) = start_members(etcd, tmp_path / "full", 1)
    try:
        a = host("a", member.url)
        a.join(E1)
        assert a.published()
        member.call("maintenance/alarm", action="ACTIVATE", memberID=0, alarm="NOSPACE")
        a.join(E1, endpoint("a", 90))
        assert not a.plane.wait_published(2.5)
        assert a.view.connected
        wait_until(lambda: sum("database space exceeded" in r.message for r in caplog.records) == 1)
        member.call("maintenance/alarm", action="DEACTIVATE", memberID=0, alarm="NOSPACE")
        assert a.published()
    finally:
        member.kill()


def test_a_store_that_refuses_holds_no_stop_up(bench: EtcdBench, host: MakeHost) -> None:
    """The engine kills a plugin that takes too long."""
    a = host("a", bench.relay.url)
    a.join(E1)
    assert a.published()
    bench.member.call("maintenance/alarm", action="ACTIVATE", memberID=0, alarm="NOSPACE")
    a.join(E1, E2)
    start = time.monotonic()
    a.plane.stop(leave=False)
    assert time.monotonic() - start < 9


def test_many_changes_while_the_user_is_slow_are_told_at_once(bench: EtcdBench, host: MakeHost) -> None:
    a = host("a", bench.relay.url)
    views: list[int] = []
    may_go_on = threading.Event()
    may_go_on.set()
    plane = EtcdControlPlane(NodeId("b"), lambda: [bench.relay.url])
    slow = Host("b", plane)

    def on_view(view: Any) -> None:
        slow.on_view(view)
        views.append(1)
        may_go_on.wait(60)

    plane.start(on_view)
    slow.join()
    assert slow.published()
    may_go_on.clear()
    views.clear()
    for i in range(200):
        bench.put(key_of(endpoint("x", i)), encode_endpoint(endpoint("x", i)))
    may_go_on.set()
    wait_until(lambda: len(slow.rows()) == 200)
    assert len(views) < 60
    plane.stop(leave=False)
    assert a.plane is not None


def test_something_else_that_answers_on_the_port(host: MakeHost, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        a = host("a", f"http://127.0.0.1:{server.getsockname()[1]}", f"http://127.0.0.1:{free_port()}")
        a.join(E1)
        connection, _ = server.accept()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        connection.close()
        assert not a.plane.wait_published(1)
        wait_until(lambda: sum("store away" in r.message for r in caplog.records) >= 2)
    assert not a.view.connected


def test_no_store_is_known(caplog: pytest.LogCaptureFixture) -> None:
    urls: list[str] = []
    plane = EtcdControlPlane(NodeId("a"), lambda: urls)
    plane.start(lambda view: None)
    wait_until(lambda: any("no manager of the Swarm is known" in r.message for r in caplog.records))
    assert not plane.wait_published(1)
    plane.stop(leave=True)


def test_two_hosts_with_one_identity_do_not_fight(
    bench: EtcdBench, host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    a = host("a", bench.relay.url)
    a.join(E1)
    assert a.published()
    bench.put(node_key(NodeId("a")), '{"vtep":"192.0.2.77"}')
    wait_until(lambda: any("one state folder" in r.message for r in caplog.records))
    time.sleep(0.2)
    assert bench.dump()[node_key(NodeId("a"))] == '{"vtep":"192.0.2.77"}'


@pytest.mark.kernel
def test_a_path_that_swallows_everything_is_noticed_by_the_kernel(etcd: Path) -> None:
    """With a heartbeat of only every 12 s (a lease of 60), so that it is not what notices."""
    run = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "tests.cluster.blackhole", str(etcd)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert all(float(line) < 6 for line in run.stdout.split()), run.stdout


def test_no_watch_of_many_is_ever_lost(bench: EtcdBench) -> None:
    """Go's server drops the unread rest of a request's body: once in three times, with 250 of them."""
    for _ in range(30):
        client = EtcdClient(bench.member.url, PlainSessions().session())
        watch = client.watch(f"/pyoverlay/v1/endpoints/{i:064}/" for i in range(250))
        watch.wait_open()
        watch.close()
        client.close()


def test_a_watch_that_does_not_open_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = EtcdClient(f"http://127.0.0.1:{server.getsockname()[1]}", PlainSessions().session())
        start = time.monotonic()
        with pytest.raises(EtcdError):
            client.watch(["/"])
        assert 1 < time.monotonic() - start < 15
        client.close()
