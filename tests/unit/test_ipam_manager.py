"""The service: strings in, clear refusals, one transaction a call; and real engines' sequences."""

import json
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ipam.disk import LeaseFile
from ipam.errors import BadRequest, Conflict, DiskError, IpamError, NotFound
from ipam.manager import AddressManager, AddressSpaces, Capabilities
from ipam.pools import Address, IpamState, Network

LOCAL, GLOBAL = "pyoverlay-local", "pyoverlay-global"
GATEWAY = {"RequestAddressType": "com.docker.network.gateway"}
SERIAL = {"com.docker.network.ipam.serial": "true"}


class MemoryStore:
    """A store without a disk, which can be made to fail."""

    def __init__(self) -> None:
        self.kept: IpamState | None = None
        self.saves = 0
        self.broken = False

    def load(self) -> IpamState | None:
        return self.kept

    def save(self, state: IpamState) -> None:
        if self.broken:
            raise DiskError("state file", "memory", "cannot be written", "mend it")
        self.kept = state
        self.saves += 1


def no_routes() -> Collection[Network]:
    return ()


def nobody(prefix: Network, address: Address) -> bool:
    return False


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def ipam(store: MemoryStore) -> AddressManager:
    return AddressManager(store, no_routes, nobody)


def test_constant_answers(ipam: AddressManager) -> None:
    assert ipam.capabilities() == Capabilities(requires_mac_address=False, requires_request_replay=False)
    assert ipam.default_address_spaces() == AddressSpaces(LOCAL, GLOBAL)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"space": "LocalDefault"}, 'AddressSpace "LocalDefault": .*use "pyoverlay-local"'),
        ({"space": ""}, 'AddressSpace ""'),
        ({"pool": "10.1.0.0"}, r'Pool "10\.1\.0\.0": is not a subnet in CIDR form; write address/length'),
        ({"pool": "10.1.0.0/33"}, 'Pool "10.1.0.0/33": is not a subnet'),
        ({"pool": "10.1.0.0/255.255.0.0"}, "CIDR"),
        ({"pool": "10.1.0.0/٢٤"}, "CIDR"),
        ({"pool": "fe80::%eth0/64"}, "CIDR"),
        ({"pool": "x" * 10_000_000}, r"x{100}… \(10000000 characters\)"),
        ({"pool": "fd00::/64"}, 'Pool "fd00::/64": is an IPv6 subnet.*a Swarm has no IPv6'),
        ({"pool": "10.1.0.0/24", "v6": True}, 'Pool "10.1.0.0/24": is an IPv4 subnet.*use an IPv6'),
        ({"pool": "127.0.0.0/8"}, "this host's own addresses.*private"),
        ({"pool": "224.1.0.0/16"}, "multicast"),
        ({"pool": "0.0.0.5/24"}, "unspecified"),
        ({"pool": "0.0.0.0/0"}, "too large for a default pool.*--subnet"),
        ({"pool": "0.0.0.0/32"}, "too small for a default pool"),
        ({"sub_pool": "10.1.0.0/24"}, 'SubPool "10.1.0.0/24": has no pool.*--subnet with --ip-range'),
        ({"pool": "0.0.0.0/24", "sub_pool": "10.1.0.0/24"}, "SubPool.*any /24"),
        ({"pool": "10.1.0.0/24", "sub_pool": "10.2.0.0/25"}, r"SubPool .*outside of the pool 10\.1\.0\.0/24"),
        ({"pool": "10.1.0.0/24", "sub_pool": "10.1.0.0/16"}, "SubPool .*outside"),
        ({"pool": "10.1.0.0/24", "sub_pool": "fd00::/64"}, "SubPool .*outside"),
        ({"pool": "10.1.0.0/24", "sub_pool": "garbage"}, 'SubPool "garbage": is not a subnet'),
        ({"options": {"color": "blue"}}, '--ipam-opt "color": is not an option of this driver; leave it out'),
    ],
)
def test_a_bad_pool_request_names_field_value_and_remedy(
    ipam: AddressManager, store: MemoryStore, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        ipam.request_pool(**{"space": LOCAL, **fields})
    assert store.saves == 0


@pytest.mark.parametrize(
    "text", ["10.1.0.5/24", "10.1.0", "010.1.0.5", "fe80::1%eth0", "garbage", " 10.1.0.5"]
)
def test_a_bad_address_names_itself(ipam: AddressManager, text: str) -> None:
    pool_id = ipam.request_pool(LOCAL, "10.1.0.0/24").pool_id
    with pytest.raises(BadRequest, match=r'Address ".*": is not an IP address; write a plain address'):
        ipam.request_address(pool_id, text)
    with pytest.raises(BadRequest, match="Address"):
        ipam.release_address(pool_id, text)


def test_host_bits_are_cleared_and_shown(ipam: AddressManager) -> None:
    lease = ipam.request_pool(LOCAL, "10.1.0.77/24", "10.1.0.99/28")
    assert (str(lease.prefix), lease.pool_id) == (
        "10.1.0.0/24",
        "pyoverlay-local/10.1.0.0/24/10.1.0.96/28",
    )


def test_the_engines_own_options_always_pass(ipam: AddressManager) -> None:
    """The allocator leaves some of its own in the pool's options (cnmallocator dOptions)."""
    options = {**GATEWAY, **SERIAL, "com.docker.network.something.new": "x"}
    pool_id = ipam.request_pool(GLOBAL, options=options).pool_id
    ipam.request_address(pool_id, "", options)
    ipam.request_address(pool_id, None, None)


def test_any_pool_of_a_size(ipam: AddressManager) -> None:
    assert ipam.request_pool(LOCAL, "0.0.0.0/26").prefix.prefixlen == 26
    assert ipam.request_pool(LOCAL, "::/80", v6=True).prefix.prefixlen == 80


def test_releases_of_the_unknown_succeed(ipam: AddressManager, store: MemoryStore) -> None:
    for pool_id in ("", "garbage", "pyoverlay-local/10.1.0.0/24", "pyoverlay-global/fd00::/64"):
        ipam.release_pool(pool_id)
        ipam.release_address(pool_id, "10.1.0.1")
        ipam.release_address(pool_id, "")
    assert store.saves == 0


def test_an_address_of_an_unknown_pool_is_refused(ipam: AddressManager) -> None:
    with pytest.raises(NotFound, match='PoolID "garbage": is not a pool of this driver; use an id that'):
        ipam.request_address("garbage")


def test_a_failed_save_changes_nothing(ipam: AddressManager, store: MemoryStore) -> None:
    pool_id = ipam.request_pool(LOCAL, "10.1.0.0/24").pool_id
    before, store.broken = ipam.state, True
    for call in (
        lambda: ipam.request_pool(LOCAL),
        lambda: ipam.request_address(pool_id),
    ):
        with pytest.raises(DiskError):
            call()
        assert ipam.state is before
    store.broken = False
    assert str(ipam.request_address(pool_id).interface) == "10.1.0.1/24"


def test_a_release_counts_although_it_cannot_be_saved(ipam: AddressManager, store: MemoryStore) -> None:
    """The engine says it once; it is written with the next change."""
    pool_id = ipam.request_pool(LOCAL, "10.1.0.0/24").pool_id
    taken = ipam.request_address(pool_id).interface
    store.broken = True
    ipam.release_address(pool_id, str(taken.ip))
    ipam.release_pool(pool_id)
    assert not ipam.state.pools
    store.broken = False
    saves = store.saves
    ipam.request_pool(LOCAL, "10.2.0.0/24")
    assert store.saves == saves + 1


def test_nothing_is_written_when_nothing_changed(ipam: AddressManager, store: MemoryStore) -> None:
    pool_id = ipam.request_pool(LOCAL, "10.1.0.0/24").pool_id
    ipam.request_address(pool_id, "10.1.0.1", GATEWAY)
    saves = store.saves
    ipam.capabilities()
    ipam.request_pool(LOCAL, "10.1.0.0/24")
    ipam.request_address(pool_id, "10.1.0.1", GATEWAY)
    ipam.release_address(pool_id, "10.1.0.99")
    assert store.saves == saves


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ipam.json"
    first = AddressManager(LeaseFile(path), no_routes, nobody)
    pool = first.request_pool(LOCAL)
    v6 = first.request_pool(LOCAL, v6=True)
    given = first.request_address(pool.pool_id).interface
    second = AddressManager(LeaseFile(path), no_routes, nobody)
    assert second.state == first.state
    assert second.request_address(pool.pool_id).interface.ip == given.ip + 1
    assert v6.prefix.supernet(new_prefix=49) == second.request_pool(LOCAL, v6=True).prefix.supernet(
        new_prefix=49
    )


def test_a_damaged_file_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "ipam.json"
    path.write_text("{")
    with pytest.raises(DiskError):
        AddressManager(LeaseFile(path), no_routes, nobody)
    assert path.read_text() == "{"


def test_stand_alone_networks_are_defended_and_leftovers_are_not(store: MemoryStore) -> None:
    known: list[Network] = []
    ipam = AddressManager(store, no_routes, nobody, networks=lambda: known)
    lease = ipam.request_pool(LOCAL, "10.1.0.0/16")
    known.append(lease.prefix)
    with pytest.raises(Conflict, match=r"overlaps with 10\.1\.0\.0/16"):
        ipam.request_pool(LOCAL, "10.1.2.0/24")
    known.clear()
    ipam.request_pool(LOCAL, "10.1.2.0/24")


def test_the_clock_drives_the_expiry_of_a_replay(store: MemoryStore) -> None:
    now = [0.0]
    ipam = AddressManager(store, no_routes, nobody, clock=lambda: now[0])
    pool_id = ipam.request_pool(GLOBAL, "10.1.0.0/24").pool_id
    ipam.request_address(pool_id, "", {**GATEWAY, **SERIAL})
    for _ in range(3):
        ipam.request_address(pool_id, "", SERIAL)
    ipam.capabilities()
    ipam.request_pool(GLOBAL, "10.1.0.0/24")
    ipam.request_address(pool_id, "10.1.0.1", {**GATEWAY, **SERIAL})
    ipam.request_address(pool_id, "10.1.0.3", SERIAL)
    now[0] += 3600
    ipam.capabilities()
    assert store.kept is not None
    (pool,) = store.kept.pools.values()
    assert list(pool.leases) == [1, 3]


def test_parallel_calls_never_share_an_address(ipam: AddressManager) -> None:
    pool_id = ipam.request_pool(LOCAL, "10.1.0.0/16").pool_id
    given: list[str] = []

    def work() -> None:
        for _ in range(100):
            given.append(str(ipam.request_address(pool_id).interface))  # noqa: PERF401  (one by one)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(given)) == 800


class SlowStore(MemoryStore):
    """A store that saves when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.busy, self.may_end = threading.Event(), threading.Event()

    def save(self, state: IpamState) -> None:
        self.busy.set()
        assert self.may_end.wait(30)
        super().save(state)


@pytest.mark.parametrize("broken", [False, True])
def test_calls_share_a_write_and_what_it_cannot_save_was_never_given(broken: bool) -> None:
    store = SlowStore()
    ipam = AddressManager(store, no_routes, nobody)
    store.may_end.set()
    pool_id = ipam.request_pool(LOCAL, "10.1.0.0/24").pool_id
    taken = str(ipam.request_address(pool_id).interface.ip)
    saves = store.saves
    store.may_end.clear()
    store.busy.clear()
    with ThreadPoolExecutor(50) as pool:
        calls = [pool.submit(ipam.request_address, pool_id)]
        assert store.busy.wait(30)
        calls += [pool.submit(ipam.request_address, pool_id) for _ in range(40)]
        released = pool.submit(ipam.release_address, pool_id, taken)
        deadline = time.monotonic() + 30
        while len(ipam._committed._queue) < 41:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        ipam.capabilities()  # of no concern to the disk
        assert [str(pool.leases.to_text()) for pool in ipam.state.pools.values()] == ["1"]
        store.broken = broken
        store.may_end.set()
    assert released.exception() is None
    (leases,) = (set(pool.leases) for pool in ipam.state.pools.values())
    if broken:
        assert {type(call.exception()) for call in calls} == {DiskError}
        assert leases == set()
    else:
        assert {call.result().interface.ip.packed[-1] for call in calls} == leases
        assert leases == set(range(2, 43))
        assert store.saves == saves + 2
        assert store.kept == ipam.state


# What engine 28.5.2 was seen to send, in order: method and body. Each line depends on the answers
# before it, so "@gw" and the like stand for what this driver answers. (The recorded stand-alone network
# had `--ipam-opt a=b`, which this driver refuses; its Options are null here.)

SHORT = {
    "@type": "RequestAddressType",
    "@gateway": "com.docker.network.gateway",
    "@serial": "com.docker.network.ipam.serial",
    "@mac": "com.docker.network.endpoint.macaddress",
}

STAND_ALONE = """
GetCapabilities
GetDefaultAddressSpaces
RequestPool {"AddressSpace":"@local","Pool":"","SubPool":"","Options":null,"V6":false} -> @pool4
RequestAddress {"PoolID":"@pool4","Address":"","Options":{"@type":"@gateway"}} -> @gw4
GetDefaultAddressSpaces
RequestPool {"AddressSpace":"@local","Pool":"","SubPool":"","Options":null,"V6":true} -> @pool6
RequestAddress {"PoolID":"@pool6","Address":"","Options":{"@type":"@gateway"}} -> @gw6
RequestAddress {"PoolID":"@pool4","Address":"","Options":{"@mac":"5e:b8:d1:de:81:ef"}} -> @ip4
RequestAddress {"PoolID":"@pool6","Address":"","Options":{"@mac":"5e:b8:d1:de:81:ef"}} -> @ip6
ReleaseAddress {"PoolID":"@pool4","Address":"@ip4"}
ReleaseAddress {"PoolID":"@pool6","Address":"@ip6"}
ReleaseAddress {"PoolID":"@pool4","Address":"@gw4"}
ReleasePool {"PoolID":"@pool4"}
ReleaseAddress {"PoolID":"@pool6","Address":"@gw6"}
ReleasePool {"PoolID":"@pool6"}
"""

LEADER = """
GetCapabilities
GetCapabilities
GetDefaultAddressSpaces
RequestPool {"AddressSpace":"@global","Pool":"","SubPool":"","Options":null,"V6":false} -> @pool
RequestAddress {"PoolID":"@pool","Address":"","Options":{"@type":"@gateway","@serial":"true"}} -> @gw
RequestAddress {"PoolID":"@pool","Address":"","Options":{"@serial":"true"}} -> @task
ReleaseAddress {"PoolID":"@pool","Address":"@task"}
ReleaseAddress {"PoolID":"@pool","Address":"@gw"}
ReleasePool {"PoolID":"@pool"}
"""

WORKER = """
GetCapabilities
GetDefaultAddressSpaces
RequestPool {"AddressSpace":"@local","Pool":"10.80.0.0/24","SubPool":"","Options":null,"V6":false} -> @pool
RequestAddress {"PoolID":"@pool","Address":"10.80.0.1","Options":{"@type":"@gateway"}} -> @gw
RequestAddress {"PoolID":"@pool","Address":"10.80.0.2","Options":{"@mac":"be:89:ad:3f:82:42"}} -> @task
ReleaseAddress {"PoolID":"@pool","Address":"@task"}
ReleaseAddress {"PoolID":"@pool","Address":"@gw"}
ReleasePool {"PoolID":"@pool"}
"""


def call(ipam: AddressManager, method: str, body: Mapping[str, Any]) -> str:
    match method:
        case "RequestPool":
            values = (body["AddressSpace"], body["Pool"], body["SubPool"], body["Options"], body["V6"])
            return ipam.request_pool(*values).pool_id
        case "RequestAddress":
            interface = ipam.request_address(body["PoolID"], body["Address"], body["Options"]).interface
            return str(interface.ip)
        case "ReleaseAddress":
            ipam.release_address(body["PoolID"], body["Address"])
        case "ReleasePool":
            ipam.release_pool(body["PoolID"])
        case "GetCapabilities":
            ipam.capabilities()
        case "GetDefaultAddressSpaces":
            ipam.default_address_spaces()
    return ""


def play(ipam: AddressManager, recording: str) -> dict[str, str]:
    names = {"@local": LOCAL, "@global": GLOBAL}
    for line in recording.strip().splitlines():
        for short, key in SHORT.items():
            line = line.replace(short, key)  # noqa: PLW2901  (still the same line)
        request, _, name = line.partition(" -> ")
        method, _, body = request.partition(" ")
        fields = json.loads(body) if body else {}
        answer = call(ipam, method, {k: names.get(str(v), v) for k, v in fields.items()})
        names |= {name: answer} if name else {}
    return names


def test_a_stand_alone_engines_sequence_leaves_nothing(ipam: AddressManager) -> None:
    seen = play(ipam, STAND_ALONE)
    assert (seen["@gw4"], seen["@ip4"]) == ("10.64.0.1", "10.64.0.2")
    assert seen["@gw6"].startswith("fd")
    assert not ipam.state.pools


def test_a_swarms_sequences_leave_nothing(ipam: AddressManager) -> None:
    """The leader's node is a worker too: both callers, one process, the same addresses."""
    leader, lines = play(ipam, "\n".join(LEADER.strip().splitlines()[:6])), LEADER.strip().splitlines()
    assert (leader["@gw"], leader["@task"]) == ("10.80.0.1", "10.80.0.2")
    worker = play(ipam, WORKER)
    assert (worker["@gw"], worker["@task"]) == (leader["@gw"], leader["@task"])
    rest = "\n".join(lines[6:])
    for name in ("@pool", "@task", "@gw"):
        rest = rest.replace(f'"{name}"', json.dumps(leader[name]))
    play(ipam, rest)
    assert not ipam.state.pools


@pytest.mark.parametrize("recording", [STAND_ALONE, LEADER, WORKER])
def test_every_recorded_request_may_come_twice(ipam: AddressManager, recording: str) -> None:
    """An engine that crashed in between asks again; one round's releases still clear it all."""
    opened = "\n".join(line for line in recording.splitlines() if "Release" not in line)
    if recording is WORKER:
        play(ipam, opened)
    play(ipam, recording)
    assert not ipam.state.pools


def test_every_error_has_field_value_problem_and_remedy(ipam: AddressManager) -> None:
    with pytest.raises(IpamError) as caught:
        ipam.request_pool(LOCAL, "garbage")
    error = caught.value
    assert str(error) == f'{error.field} "{error.value}": {error.problem}; {error.remedy}'
