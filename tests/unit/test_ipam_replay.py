"""Leader changes: what is confirmed, what expires, and above all what does not."""

from ipaddress import ip_address, ip_network

import pytest

from ipam import replay
from ipam.allocator import (
    AddressRequest,
    PoolRequest,
    release_address,
    release_pool,
    request_address,
    request_pool,
)
from ipam.errors import Conflict
from ipam.pools import IpamState, PoolId, Space
from ipam.replay import GRACE

A, B = "10.1.0.0/24", "10.2.0.0/24"


class Leader:
    """The plugin beside a Swarm's leader, with a clock to turn."""

    def __init__(self) -> None:
        self.state = IpamState(ula_id=1)
        self.now = 1000.0

    def elected(self) -> None:
        self.state = replay.begin_epoch(self.state, self.now)

    def pool(self, prefix: str, space: Space = Space.GLOBAL) -> PoolId:
        self.state = replay.expire(self.state, self.now)
        self.state, pool_id = request_pool(self.state, PoolRequest(space, prefix=ip_network(prefix)))
        return pool_id

    def ask(self, pool_id: PoolId, address: str = "", *, gateway: bool = False, leader: bool = True) -> str:
        self.state = replay.expire(self.state, self.now)
        wanted = ip_address(address) if address else None
        request = AddressRequest(wanted, gateway=gateway, leader=leader)
        self.state, given = request_address(self.state, pool_id, request, lambda *_: False, self.now)
        return str(given.ip)

    def free(self, pool_id: PoolId, address: str) -> None:
        self.state = release_address(self.state, pool_id, ip_address(address))

    def leases(self, prefix: str) -> set[str]:
        self.state = replay.expire(self.state, self.now)
        pool = self.state.pools.get((Space.GLOBAL, ip_network(prefix)))
        return {str(pool.address(offset)) for offset in pool.leases} if pool else set()


@pytest.fixture
def leader() -> Leader:
    """Two networks of two tasks each: .1 is the gateway, .2 and .3 the tasks."""
    leader = Leader()
    leader.elected()
    for prefix in (A, B):
        pool_id = leader.pool(prefix)
        leader.ask(pool_id, gateway=True)
        leader.ask(pool_id)
        leader.ask(pool_id)
    return leader


def replay_of(leader: Leader, prefix: str, *tasks: str) -> PoolId:
    pool_id = leader.pool(prefix)
    leader.ask(pool_id, str(ip_network(prefix)[1]), gateway=True)
    for task in tasks:
        leader.ask(pool_id, task)
    return pool_id


def test_a_replay_drops_what_it_does_not_mention(leader: Leader) -> None:
    leader.elected()
    replay_of(leader, A, "10.1.0.3")
    leader.now += GRACE - 1
    assert leader.leases(A) == {"10.1.0.1", "10.1.0.2", "10.1.0.3"}
    leader.now += 1
    assert leader.leases(A) == {"10.1.0.1", "10.1.0.3"}
    assert leader.leases(B) == set()  # that network was removed under another leader


def test_unconfirmed_addresses_are_not_given(leader: Leader) -> None:
    leader.elected()
    pool_id = replay_of(leader, A, "10.1.0.3")
    assert leader.ask(pool_id) == "10.1.0.4"


def test_what_is_given_after_the_election_stays(leader: Leader) -> None:
    leader.elected()
    pool_id = replay_of(leader, A, "10.1.0.2")
    leader.ask(pool_id, "10.1.0.77")
    given = leader.ask(pool_id)
    leader.now += GRACE
    assert leader.leases(A) == {"10.1.0.1", "10.1.0.2", "10.1.0.77", given}


def test_without_a_replay_nothing_expires(leader: Leader) -> None:
    """The plugin was disabled and enabled: GetCapabilities comes, and nothing after it."""
    leader.elected()
    leader.ask(leader.pool(A))
    leader.now += 100 * GRACE
    assert len(leader.leases(A)) == 4
    assert len(leader.leases(B)) == 3


def test_a_second_network_on_the_same_subnet_is_no_replay(leader: Leader) -> None:
    leader.elected()
    replay_of(leader, A)
    leader.now += GRACE
    assert len(leader.leases(A)) == 3


def test_a_repeated_address_alone_is_no_replay(leader: Leader) -> None:
    leader.elected()
    leader.ask(leader.pool(A), "10.1.0.2")
    leader.now += GRACE
    assert len(leader.leases(A)) == 3


def test_repeats_within_one_epoch_are_no_replay(leader: Leader) -> None:
    with pytest.raises(Conflict):
        replay_of(leader, A, "10.1.0.2")
    leader.now += GRACE
    assert len(leader.leases(B)) == 3


def test_repeats_of_what_was_given_after_an_election_are_no_replay(leader: Leader) -> None:
    leader.elected()
    pool_id = leader.pool("10.5.0.0/24")
    leader.ask(pool_id, gateway=True)
    task = leader.ask(pool_id)
    with pytest.raises(Conflict):
        replay_of(leader, "10.5.0.0/24", task)
    leader.now += GRACE
    assert len(leader.leases(A)) == 3


def test_a_gateway_stays_as_long_as_its_pool(leader: Leader) -> None:
    """No endpoint may get it, even if the replay failed to name it."""
    leader.elected()
    replay_of(leader, A, "10.1.0.2")
    leader.ask(leader.pool(B), "10.2.0.2")
    leader.now += GRACE
    assert leader.leases(B) == {"10.2.0.1", "10.2.0.2"}


def test_an_election_in_the_middle_of_a_replay_takes_nothing_back(leader: Leader) -> None:
    leader.elected()
    replay_of(leader, A, "10.1.0.2", "10.1.0.3")
    leader.elected()
    replay_of(leader, B, "10.2.0.2")
    leader.now += GRACE
    assert leader.leases(A) == {"10.1.0.1", "10.1.0.2", "10.1.0.3"}
    assert leader.leases(B) == {"10.2.0.1", "10.2.0.2"}


def test_an_election_after_a_replay_settles_it_first(leader: Leader) -> None:
    leader.elected()
    replay_of(leader, A, "10.1.0.2", "10.1.0.3")
    leader.now += GRACE
    leader.elected()
    replay_of(leader, A, "10.1.0.3")
    leader.now += GRACE
    assert leader.leases(A) == {"10.1.0.1", "10.1.0.3"}
    assert leader.leases(B) == set()


def test_releases_go_on_as_ever_during_an_epoch(leader: Leader) -> None:
    leader.elected()
    pool_id = replay_of(leader, A, "10.1.0.2", "10.1.0.3")
    leader.free(pool_id, "10.1.0.2")
    assert leader.leases(A) == {"10.1.0.1", "10.1.0.3"}


def test_the_local_space_and_stand_alone_networks_are_not_touched(leader: Leader) -> None:
    """No leader replays them, so silence means nothing."""
    local = leader.pool("10.3.0.0/24", Space.LOCAL)
    alone = leader.pool("10.4.0.0/24")
    for pool_id in (local, alone):
        leader.ask(pool_id, gateway=True, leader=False)
        leader.ask(pool_id, leader=False)
    leader.elected()
    replay_of(leader, A, "10.1.0.2")
    leader.now += GRACE
    assert len(leader.leases("10.4.0.0/24")) == 2
    assert len(leader.state.pools[local.key].leases) == 2


def test_a_new_leader_with_no_state_takes_the_replay_as_it_comes() -> None:
    leader = Leader()
    leader.elected()
    pool_id = replay_of(leader, A, "10.1.0.2", "10.1.0.9")
    leader.now += GRACE
    assert leader.leases(A) == {"10.1.0.1", "10.1.0.2", "10.1.0.9"}
    assert leader.ask(pool_id) == "10.1.0.3"


def test_a_replay_does_not_add_to_the_networks_of_a_pool(leader: Leader) -> None:
    """Else the pool of a network that is removed after an election would stay for ever."""
    for _ in range(3):
        leader.elected()
        pool_id = replay_of(leader, A)
    for task in ("10.1.0.2", "10.1.0.3"):
        leader.free(pool_id, task)
    leader.state = release_pool(leader.state, pool_id, lambda *_: False)
    assert pool_id.key not in leader.state.pools


def test_a_replay_counts_the_networks_anew(leader: Leader) -> None:
    """Two networks shared a subnet; one was removed under another leader."""
    leader.pool(A)
    leader.elected()
    pool_id = replay_of(leader, A, "10.1.0.2")
    assert leader.state.pools[pool_id.key].networks == 2
    leader.now += GRACE
    leader.leases(A)
    assert leader.state.pools[pool_id.key].networks == 1


def test_expiry_happens_once(leader: Leader) -> None:
    leader.elected()
    replay_of(leader, A, "10.1.0.3")
    leader.now += GRACE
    leader.leases(A)
    settled = leader.state
    leader.now += GRACE
    assert replay.expire(settled, leader.now) is settled
