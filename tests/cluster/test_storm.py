"""Many hosts at once lose the store and find it again: what was read is not asked for a second time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.cluster.ledger.codec import encode_endpoint
from tests.cluster.harness import NET2, EtcdBench, endpoint, key_of, wait_until
from tests.cluster.storm import Hosts

pytestmark = pytest.mark.store

HOSTS, EACH = 10, 100
RECORDS = HOSTS * EACH


@pytest.fixture
def bench(etcd: Path, tmp_path: Path) -> Iterator[EtcdBench]:
    made = EtcdBench(etcd, tmp_path)
    yield made
    made.close()


@pytest.fixture
def crowd(bench: EtcdBench) -> Iterator[Hosts]:
    made = Hosts.start(range(HOSTS), EACH, bench.relay.url)
    wait_until(lambda: made.settled(RECORDS), 60)
    yield made
    made.stop()


def cut_off(bench: EtcdBench, crowd: Hosts) -> None:
    bench.away(True)
    wait_until(lambda: not any(host.view.connected for host in crowd.hosts), 30)


def test_a_store_that_was_away_for_a_moment_is_asked_for_what_is_new(bench: EtcdBench, crowd: Hosts) -> None:
    first = bench.relay.carried
    cut_off(bench, crowd)
    new = endpoint("other", RECORDS)
    bench.put(key_of(new), encode_endpoint(new))
    bench.away(False)
    wait_until(lambda: crowd.settled(RECORDS + 1, lost=1), 30)
    assert bench.relay.carried - first < first / 5
    assert all(host.sees(new) for host in crowd.hosts)


def test_what_was_removed_changed_and_made_anew_meanwhile_is_seen(bench: EtcdBench, crowd: Hosts) -> None:
    gone, moved, again = (endpoint(crowd.hosts[0].name, number) for number in range(3))
    first, *rest = crowd.hosts
    first.plane.stop(leave=False)
    others = Hosts(rest)
    cut_off(bench, others)
    there = endpoint("other", 1)
    for record in (gone, again):
        bench.delete(key_of(record))
    for record in (there, again):
        bench.put(key_of(record), encode_endpoint(record))
    bench.away(False)
    wait_until(lambda: others.settled(RECORDS - 1, lost=1), 30)
    assert all(h.sees_none(gone) and h.sees(there) and h.sees(again) and not h.sees(moved) for h in rest)


def test_a_network_followed_while_away_is_read_whole(bench: EtcdBench, crowd: Hosts) -> None:
    old = endpoint("other", 1, NET2)
    bench.put(key_of(old), encode_endpoint(old))
    cut_off(bench, crowd)
    host = crowd.hosts[0]
    host.publish(networks=host.wish.networks | {NET2})
    bench.away(False)
    wait_until(lambda: crowd.settled(RECORDS, lost=1), 30)
    assert host.sees(old)


def test_a_new_store_is_read_from_the_beginning(bench: EtcdBench, crowd: Hosts) -> None:
    """Its revisions may be higher already than those of the former one."""
    strange = endpoint("other", RECORDS)
    cut_off(bench, crowd)
    bench.replace()
    bench.put(key_of(strange), encode_endpoint(strange))
    for number in range(100):
        bench.put("/elsewhere", str(number))
    bench.away(False)
    wait_until(lambda: crowd.settled(RECORDS + 1, lost=1), 60)
    assert all(host.sees(strange) for host in crowd.hosts)
