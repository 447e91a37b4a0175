"""The allocator's rules, one by one."""

from ipaddress import ip_address, ip_network

import pytest

from ipam.allocator import (
    AddressRequest,
    PoolRequest,
    release_address,
    release_pool,
    request_address,
    request_pool,
)
from ipam.disk import decode, encode
from ipam.errors import BadRequest, Conflict, Exhausted, NotFound
from ipam.pools import Address, IpamState, Network, PoolId, Space
from ipam.replay import begin_epoch

GATEWAY = AddressRequest(gateway=True)


class Host:
    """A state with hands: one engine's view, with the addresses that live on it."""

    def __init__(self) -> None:
        self.state = IpamState(ula_id=1)
        self.live: set[str] = set()

    def in_use(self, prefix: Network, address: Address) -> bool:
        return str(address) in self.live

    def open(self, prefix: str, space: Space = Space.LOCAL, sub_pool: str = "") -> PoolId:
        sub = ip_network(sub_pool) if sub_pool else None
        request = PoolRequest(space, prefix=ip_network(prefix), sub_pool=sub)
        self.state, pool_id = request_pool(self.state, request)
        return pool_id

    def close(self, pool_id: PoolId) -> None:
        self.state = release_pool(self.state, pool_id, self.in_use)

    def ask(self, pool_id: PoolId, address: str = "", *, gateway: bool = False, leader: bool = False) -> str:
        wanted = ip_address(address) if address else None
        request = AddressRequest(wanted, gateway=gateway, leader=leader)
        self.state, given = request_address(self.state, pool_id, request, self.in_use, 0.0)
        return str(given)

    def elect(self) -> None:
        self.state = begin_epoch(self.state, 0.0)

    def free(self, pool_id: PoolId, address: str) -> None:
        self.state = release_address(self.state, pool_id, ip_address(address))


@pytest.fixture
def host() -> Host:
    return Host()


def test_answers_carry_the_pools_length(host: Host) -> None:
    pool_id = host.open("10.1.0.0/16", sub_pool="10.1.2.0/24")
    assert host.ask(pool_id) == "10.1.2.0/16"
    assert host.ask(host.open("fd00::/64")) == "fd00::1/64"


def test_the_gateway_is_the_first_address(host: Host) -> None:
    assert host.ask(host.open("10.1.0.0/24"), gateway=True) == "10.1.0.1/24"
    assert host.ask(host.open("10.2.0.0/16", sub_pool="10.2.3.0/24"), gateway=True) == "10.2.0.1/16"
    assert host.ask(host.open("fd00::/64"), gateway=True) == "fd00::1/64"


def test_a_gateway_asked_for_again_is_the_same(host: Host) -> None:
    pool_id = host.open("10.1.0.0/24")
    assert {host.ask(pool_id, gateway=True) for _ in range(3)} == {"10.1.0.1/24"}
    assert host.ask(pool_id, "10.1.0.1", gateway=True) == "10.1.0.1/24"
    assert host.ask(pool_id, "10.1.0.254", gateway=True) == "10.1.0.254/24"
    assert host.ask(pool_id, "10.1.0.254", gateway=True) == "10.1.0.254/24"


def test_no_endpoint_gets_a_gateway(host: Host) -> None:
    for space in Space:
        pool_id = host.open("10.1.0.0/29", space)
        host.ask(pool_id, "10.1.0.3", gateway=True)
        given = [host.ask(pool_id) for _ in range(5)]
        assert "10.1.0.3/29" not in given
        for leader in (False, True):
            with pytest.raises(Conflict, match=r'Address "10\.1\.0\.3": is the gateway'):
                host.ask(pool_id, "10.1.0.3", leader=leader)


def test_a_released_gateway_stays_reserved_until_its_pool_goes(host: Host) -> None:
    """Another network on the same prefix has the same gateway."""
    pool_id = host.open("10.1.0.0/30")
    gateway = host.ask(pool_id, gateway=True).partition("/")[0]
    host.free(pool_id, gateway)
    assert host.ask(pool_id) == "10.1.0.2/30"
    with pytest.raises(Exhausted):
        host.ask(pool_id)


def test_allocation_is_serial(host: Host) -> None:
    pool_id = host.open("10.1.0.0/29")
    assert [host.ask(pool_id) for _ in range(3)] == ["10.1.0.1/29", "10.1.0.2/29", "10.1.0.3/29"]
    host.free(pool_id, "10.1.0.2")
    host.free(pool_id, "10.1.0.3")
    given = [host.ask(pool_id) for _ in range(5)]
    assert given == ["10.1.0.4/29", "10.1.0.5/29", "10.1.0.6/29", "10.1.0.2/29", "10.1.0.3/29"]


def test_a_gateway_and_a_named_address_do_not_move_the_series(host: Host) -> None:
    pool_id = host.open("10.1.0.0/24")
    host.ask(pool_id, gateway=True)
    host.ask(pool_id, "10.1.0.200")
    assert host.ask(pool_id) == "10.1.0.2/24"


def test_network_and_broadcast_are_never_given(host: Host) -> None:
    pool_id = host.open("10.1.0.0/30")
    assert [host.ask(pool_id) for _ in range(2)] == ["10.1.0.1/30", "10.1.0.2/30"]
    with pytest.raises(Exhausted, match=r"2 of 2 usable ones in 10\.1\.0\.0/30 are in use; .*--subnet"):
        host.ask(pool_id)
    with pytest.raises(BadRequest, match=r"network address of 10\.1\.0\.0/30; choose one from 10\.1\.0\.1"):
        host.ask(pool_id, "10.1.0.0")
    with pytest.raises(BadRequest, match=r"broadcast address.*to 10\.1\.0\.2"):
        host.ask(pool_id, "10.1.0.3")
    with pytest.raises(BadRequest, match="subnet-router anycast"):
        host.ask(host.open("fd00::/64"), "fd00::")


def test_tiny_pools_are_used_to_the_last_address(host: Host) -> None:
    pair = host.open("10.1.0.0/31")
    assert [host.ask(pair, gateway=True), host.ask(pair)] == ["10.1.0.0/31", "10.1.0.1/31"]
    single = host.open("10.1.0.9/32")
    assert host.ask(single) == "10.1.0.9/32"
    with pytest.raises(Exhausted, match="1 of 1"):
        host.ask(single)


def test_a_sub_pool_bounds_dynamic_addresses_only(host: Host) -> None:
    """The engine treats an error for a gateway or an auxiliary address as the network's end."""
    pool_id = host.open("10.1.0.0/16", sub_pool="10.1.2.8/30")
    assert host.ask(pool_id, "10.1.9.1", gateway=True) == "10.1.9.1/16"
    assert host.ask(pool_id, "10.1.0.77") == "10.1.0.77/16"
    assert [host.ask(pool_id) for _ in range(4)] == [f"10.1.2.{n}/16" for n in (8, 9, 10, 11)]
    with pytest.raises(Exhausted, match=r"4 of 4 usable ones in 10\.1\.2\.8/30.*--ip-range"):
        host.ask(pool_id)


def test_sub_pools_of_one_prefix_share_its_leases(host: Host) -> None:
    whole, part = host.open("10.1.0.0/24"), host.open("10.1.0.0/24", sub_pool="10.1.0.0/28")
    assert whole != part
    given = [host.ask(pool_id) for pool_id in (whole, part, whole, part)]
    assert len(set(given)) == 4
    host.close(part)
    assert host.ask(whole) not in given
    host.close(whole)
    assert not host.state.pools


def test_the_same_pool_again_is_the_same(host: Host) -> None:
    assert host.open("10.1.0.0/24") == host.open("10.1.0.0/24")
    assert len(host.state.pools) == 1


def test_one_release_undoes_any_number_of_requests(host: Host) -> None:
    """The Swarm's agent asks again after an unclean exit; nobody ever releases twice."""
    pool_id = host.open("10.1.0.0/24")
    for _ in range(3):
        host.open("10.1.0.0/24")
        host.ask(pool_id, "10.1.0.1", gateway=True)
    host.free(pool_id, "10.1.0.1")
    host.close(pool_id)
    assert not host.state.pools


def test_a_pools_auxiliary_addresses_go_with_it(host: Host) -> None:
    """A network creation that failed half-way releases the pool only."""
    pool_id = host.open("10.1.0.0/24")
    host.ask(pool_id, gateway=True)
    host.ask(pool_id, "10.1.0.9")
    host.close(pool_id)
    assert not host.state.pools


def test_a_pool_with_living_endpoints_survives_the_release_of_another_network(host: Host) -> None:
    pool_id = host.open("10.1.0.0/24")
    host.ask(pool_id, gateway=True)
    first = host.ask(pool_id)
    host.live.add(first.partition("/")[0])
    host.open("10.1.0.0/24")
    host.free(pool_id, "10.1.0.1")
    host.close(pool_id)
    assert host.ask(pool_id) not in {first, "10.1.0.1/24"}
    host.live.clear()
    host.close(pool_id)
    assert not host.state.pools


def test_an_idle_network_of_a_swarm_survives_the_removal_of_another_on_its_subnet(host: Host) -> None:
    first, second = host.open("10.1.0.0/24", Space.GLOBAL), host.open("10.1.0.0/24", Space.GLOBAL)
    host.ask(first, "10.1.0.254", gateway=True, leader=True)
    host.free(second, "10.1.0.254")
    host.close(second)
    assert host.ask(first, leader=True) == "10.1.0.1/24"
    host.free(first, "10.1.0.1")
    host.close(first)
    assert not host.state.pools


def test_a_leaders_pool_with_leases_survives_the_release_of_another_network(host: Host) -> None:
    """Its endpoints live on other hosts; the lease is all there is to see."""
    pool_id = host.open("10.1.0.0/24", Space.GLOBAL)
    host.ask(pool_id, gateway=True, leader=True)
    task = host.ask(pool_id, leader=True)
    host.close(pool_id)
    assert host.ask(pool_id, leader=True) != task
    host.free(pool_id, task.partition("/")[0])
    host.free(pool_id, "10.1.0.3")
    host.close(pool_id)
    assert not host.state.pools


def test_partly_overlapping_local_pools_are_refused(host: Host) -> None:
    host.open("10.1.0.0/16")
    with pytest.raises(
        Conflict, match=r'Pool "10\.1\.2\.0/24": overlaps with 10\.1\.0\.0/16.*remove that network'
    ):
        host.open("10.1.2.0/24")
    with pytest.raises(Conflict, match="overlaps"):
        host.open("10.0.0.0/8")
    assert len(host.state.pools) == 1


def test_only_defended_pools_refuse(host: Host) -> None:
    """What an unclean exit left behind must not stand in a Swarm's way on this node for ever."""
    host.open("10.1.0.0/16")
    request = PoolRequest(Space.LOCAL, prefix=ip_network("10.1.2.0/24"))
    state, pool_id = request_pool(host.state, request, defended=[])
    assert pool_id.key in state.pools
    with pytest.raises(Conflict):
        request_pool(host.state, request, defended=[ip_network("10.1.0.0/16")])


def test_the_spaces_do_not_see_each_other(host: Host) -> None:
    """A leader's node asks for the same pool and addresses in both (moby#32604)."""
    leader = host.open("10.1.0.0/24", Space.GLOBAL)
    agent = host.open("10.1.0.0/24")
    host.open("10.1.0.0/16", Space.GLOBAL)
    assert host.ask(leader, gateway=True, leader=True) == host.ask(agent, "10.1.0.1", gateway=True)
    task = host.ask(leader, leader=True)
    assert host.ask(agent, task.partition("/")[0]) == task
    host.free(agent, task.partition("/")[0])
    assert host.ask(leader, leader=True) != task


def test_a_live_twin_is_refused_and_a_stale_lease_is_not(host: Host) -> None:
    pool_id = host.open("10.1.0.0/24")
    assert host.ask(pool_id, "10.1.0.5") == "10.1.0.5/24"
    assert host.ask(pool_id, "10.1.0.5") == "10.1.0.5/24"
    host.live.add("10.1.0.5")
    with pytest.raises(Conflict, match=r'Address "10\.1\.0\.5": belongs to a running container.*choose'):
        host.ask(pool_id, "10.1.0.5")
    with pytest.raises(Conflict, match="running container"):
        host.ask(pool_id, "10.1.0.5", gateway=True)


def test_a_leaders_replay_is_answered_the_same(host: Host) -> None:
    pool_id = host.open("10.1.0.0/24", Space.GLOBAL)
    task = host.ask(pool_id, leader=True)
    host.live.add(task.partition("/")[0])  # it runs on the leader itself
    host.elect()
    host.open("10.1.0.0/24", Space.GLOBAL)
    assert host.ask(pool_id, task.partition("/")[0], leader=True) == task


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("since", ["at once", "after a restart", "after an election", "after a replay"])
def test_a_leader_gives_an_address_once(host: Host, named: bool, since: str) -> None:
    """Whoever wishes for it while another has it is refused; a replay opens the pool and asks once."""
    pool_id = host.open("10.1.0.0/24", Space.GLOBAL)
    host.ask(pool_id, gateway=True, leader=True)
    task = host.ask(pool_id, "10.1.0.50" if named else "", leader=True).partition("/")[0]
    if since == "after a restart":
        host.state = decode(encode(host.state))
    elif since != "at once":
        host.elect()
    if since == "after a replay":
        host.open("10.1.0.0/24", Space.GLOBAL)
        host.ask(pool_id, task, leader=True)
    for gateway in (False, True):
        with pytest.raises(Conflict, match=rf'Address "{task}": belongs to another container or service'):
            host.ask(pool_id, task, leader=True, gateway=gateway)
    host.free(pool_id, task)
    assert host.ask(pool_id, task, leader=True) == f"{task}/24"


def test_a_second_replay_soon_after_the_first_is_answered_too(host: Host) -> None:
    """Two elections within the grace are one epoch, but the leader tells all that it knows each time."""
    pool_id = host.open("10.1.0.0/24", Space.GLOBAL)
    host.ask(pool_id, gateway=True, leader=True)
    task = host.ask(pool_id, leader=True).partition("/")[0]
    for _ in range(3):
        host.elect()
        host.open("10.1.0.0/24", Space.GLOBAL)
        host.ask(pool_id, "10.1.0.1", gateway=True, leader=True)
        assert host.ask(pool_id, task, leader=True) == f"{task}/24"
    assert host.state.replay.seen_at is not None


def test_a_stand_alone_network_of_global_scope_refuses_a_twin(host: Host) -> None:
    """Its engine asks in the global space too, but without the allocator's mark."""
    pool_id = host.open("10.1.0.0/24", Space.GLOBAL)
    host.ask(pool_id, "10.1.0.5")
    host.live.add("10.1.0.5")
    with pytest.raises(Conflict):
        host.ask(pool_id, "10.1.0.5")


def test_living_addresses_without_a_lease_are_not_given(host: Host) -> None:
    """After a loss of the state, and between the leader's release and the node's DeleteEndpoint."""
    pool_id = host.open("10.1.0.0/24")
    host.live |= {"10.1.0.1", "10.1.0.2"}
    assert host.ask(pool_id) == "10.1.0.3/24"


def test_a_search_ends_when_everything_lives() -> None:
    host = Host()
    pool_id = host.open("fd00::/64")
    with pytest.raises(Exhausted):
        request_address(host.state, pool_id, AddressRequest(), lambda prefix, address: True, 0.0)


def test_an_address_outside_of_the_pool_is_refused(host: Host) -> None:
    pool_id = host.open("10.1.0.0/24")
    host.open("10.2.0.0/24")
    with pytest.raises(
        BadRequest, match=r'"10\.2\.0\.5": lies outside of the pool 10\.1\.0\.0/24; choose one from'
    ):
        host.ask(pool_id, "10.2.0.5")
    with pytest.raises(BadRequest, match="outside"):
        host.ask(pool_id, "fd00::1")


def test_a_leader_finds_an_address_under_a_siblings_id(host: Host) -> None:
    """It tries a network's pools in random order and cannot tell our "out of range" from an end."""
    one, two = host.open("10.1.0.0/24", Space.GLOBAL), host.open("10.2.0.0/24", Space.GLOBAL)
    assert host.ask(one, "10.2.0.5", leader=True) == "10.2.0.5/24"
    host.free(one, "10.2.0.5")
    assert host.ask(two, "10.2.0.5", leader=True) == "10.2.0.5/24"
    host.free(one, "10.2.0.5")
    assert not host.state.pools[two.key].leases
    with pytest.raises(BadRequest, match="outside"):
        host.ask(one, "10.3.0.5", leader=True)
    host.close(two)
    assert list(host.state.pools) == [one.key]


def test_of_two_siblings_the_one_that_holds_the_address_is_meant(host: Host) -> None:
    one = host.open("10.1.0.0/24", Space.GLOBAL)
    wide, narrow = host.open("10.2.0.0/16", Space.GLOBAL), host.open("10.2.0.0/24", Space.GLOBAL)
    assert host.ask(one, "10.2.0.9", leader=True) == "10.2.0.9/24"
    assert host.ask(wide, "10.2.0.5", leader=True) == "10.2.0.5/16"
    host.elect()
    for prefix in ("10.1.0.0/24", "10.2.0.0/16", "10.2.0.0/24"):
        host.open(prefix, Space.GLOBAL)
    assert host.ask(one, "10.2.0.5", leader=True) == "10.2.0.5/16"
    host.free(one, "10.2.0.5")
    assert not host.state.pools[wide.key].leases
    assert len(host.state.pools[narrow.key].leases) == 1


def test_releasing_what_is_not_there_changes_nothing(host: Host) -> None:
    pool_id = host.open("10.1.0.0/24")
    before = host.state
    host.free(pool_id, "10.1.0.9")
    host.free(pool_id, "10.9.0.9")
    host.free(pool_id, "fd00::9")
    host.free(PoolId(Space.GLOBAL, ip_network("10.7.0.0/24")), "10.7.0.1")
    host.close(PoolId(Space.LOCAL, ip_network("10.7.0.0/24")))
    host.close(PoolId(Space.LOCAL, ip_network("10.1.0.0/24"), ip_network("10.1.0.0/25")))
    assert host.state == before


def test_a_lost_local_pool_is_made_again_from_its_id(host: Host) -> None:
    pool_id = PoolId(Space.LOCAL, ip_network("10.1.0.0/16"), ip_network("10.1.0.0/30"))
    host.live.add("10.1.0.2")
    assert host.ask(pool_id) == "10.1.0.3/16"  # .1 is the gateway, most likely
    assert host.ask(pool_id, "10.1.0.1", gateway=True) == "10.1.0.1/16"
    host.live.clear()
    host.close(pool_id)
    assert not host.state.pools


def test_a_lost_global_pool_is_not_made_again(host: Host) -> None:
    """The other hosts' addresses are unseen: giving out any would give some out twice."""
    pool_id = PoolId(Space.GLOBAL, ip_network("10.1.0.0/24"))
    for address in ("", "10.1.0.5"):
        with pytest.raises(NotFound, match=r'PoolID "pyoverlay-global/10\.1\.0\.0/24".*demote'):
            host.ask(pool_id, address, leader=True)


def test_a_large_pool_costs_nothing(host: Host) -> None:
    for prefix in ("10.0.0.0/8", "fd00::/16"):
        pool_id = host.open(prefix)
        host.ask(pool_id, str(ip_network(prefix)[-2]))
        host.ask(pool_id)
