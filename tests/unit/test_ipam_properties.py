"""Any sequence of calls keeps the promises; a model walks beside the service."""

from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from ipam.disk import LeaseFile, decode, encode
from ipam.errors import IpamError
from ipam.manager import AddressManager
from ipam.pools import Address, Network

GATEWAY = {"RequestAddressType": "com.docker.network.gateway"}
SERIAL = {"com.docker.network.ipam.serial": "true"}
#: Small, so that they fill up; two overlap; one has a range.
POOLS = [
    ("10.1.0.0/29", ""),
    ("10.1.0.0/28", ""),
    ("10.2.0.0/24", "10.2.0.4/30"),
    ("10.2.0.0/24", ""),
    ("10.3.0.0/31", ""),
    ("fd00::/125", ""),
]
SPACES = ["pyoverlay-local", "pyoverlay-global"]


class Engine(RuleBasedStateMachine):
    """An engine that forgets, repeats itself, changes its leader and restarts the plugin."""

    pools = Bundle("pools")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.now = 0.0
        self.held: set[tuple[str, str]] = set()  # (space/prefix, address) of living endpoints
        self.gateways: set[tuple[str, str]] = set()
        self.told: set[tuple[str, str]] = set()  # what a leader has asked for since it was last elected
        self.open_since: set[str] = set()  # space/prefix of the pools that were opened since
        self.start()

    def start(self) -> None:
        store = LeaseFile(Path(self.folder.name) / "ipam.json")
        self.ipam = AddressManager(store, list, self.in_use, lambda: self.now)
        self.elect()

    def elect(self) -> None:
        self.ipam.capabilities()
        self.told.clear()
        self.open_since.clear()

    def teardown(self) -> None:
        self.folder.cleanup()

    def in_use(self, prefix: Network, address: Address) -> bool:
        return (f"{SPACES[0]}/{prefix}", str(address)) in self.held

    def attempt(self, call: Callable[[], str]) -> str | None:
        """The answer; None for a refusal, which must change nothing."""
        before = self.ipam.state
        try:
            return call()
        except IpamError:
            assert self.ipam.state is before
            return None

    @rule(target=pools, space=st.sampled_from(SPACES), pool=st.sampled_from(POOLS))
    def open(self, space: str, pool: tuple[str, str]) -> object:
        v6 = ":" in pool[0]
        found = self.attempt(lambda: self.ipam.request_pool(space, *pool, v6=v6).pool_id)
        if not found:
            return multiple()
        self.open_since.add(self.home(found))
        return found

    @rule(target=pools, space=st.sampled_from(SPACES), v6=st.booleans())
    def open_any(self, space: str, v6: bool) -> str:
        others = {prefix for _, prefix in self.ipam.state.pools}
        lease = self.ipam.request_pool(space, v6=v6)
        assert not any(lease.prefix.version == o.version and lease.prefix.overlaps(o) for o in others)
        self.open_since.add(self.home(lease.pool_id))
        return lease.pool_id

    @rule(target=leases, pool_id=pools)
    def container(self, pool_id: str) -> object:
        leader = SERIAL if "global" in pool_id else None
        answer = self.attempt(lambda: str(self.ipam.request_address(pool_id, "", leader).interface))
        if not answer:
            return multiple()
        address, home = answer.partition("/")[0], self.home(pool_id)
        assert (home, address) not in self.held, "given twice"
        assert (home, address) not in self.gateways, "a gateway was given"
        self.check_place(pool_id, answer)
        self.held.add((home, address))
        self.told.add((home, address))
        return pool_id, address

    def home(self, pool_id: str) -> str:
        return "/".join(pool_id.split("/")[:3])

    def check_place(self, pool_id: str, answer: str) -> None:
        parts = pool_id.split("/")
        prefix, address = ip_network("/".join(parts[1:3])), ip_address(answer.partition("/")[0])
        assert answer.endswith(f"/{prefix.prefixlen}")
        assert address in ip_network("/".join(parts[3:]) or str(prefix))
        if prefix.num_addresses > 2:
            assert address != prefix.network_address
            assert prefix.version == 6 or address != prefix.broadcast_address

    @rule(pool_id=pools)
    def gateway(self, pool_id: str) -> None:
        options = {**GATEWAY, **SERIAL} if "global" in pool_id else GATEWAY
        answer = self.attempt(lambda: str(self.ipam.request_address(pool_id, "", options).interface.ip))
        if answer:
            assert (self.home(pool_id), answer) not in self.held
            self.gateways.add((self.home(pool_id), answer))

    @rule(lease=leases)
    def ask_again(self, lease: tuple[str, str]) -> None:
        """By name: a twin is refused, the leader's replay is not."""
        pool_id, address = lease
        home = self.home(pool_id)
        is_replay = "global" in pool_id and home in self.open_since and (home, address) not in self.told
        options = SERIAL if "global" in pool_id else None
        answer = self.attempt(lambda: str(self.ipam.request_address(pool_id, address, options).interface.ip))
        if (home, address) in self.held:
            assert answer == (address if is_replay else None)
        if answer:
            self.held.add((home, address))
            self.told.add((home, address))

    @rule(lease=consumes(leases))
    def stop(self, lease: tuple[str, str]) -> None:
        self.held.discard((self.home(lease[0]), lease[1]))
        self.told.discard((self.home(lease[0]), lease[1]))
        self.ipam.release_address(*lease)

    @rule(pool_id=pools)
    def remove_network(self, pool_id: str) -> None:
        """Another network on the same prefix may still live there: nothing of it may be lost."""
        self.ipam.release_pool(pool_id)
        open_homes = {f"{space}/{prefix}" for space, prefix in self.ipam.state.pools}
        self.gateways = {(home, gw) for home, gw in self.gateways if home in open_homes}

    @rule()
    def election_without_replay(self) -> None:
        self.elect()

    @rule()
    def election_with_replay(self) -> None:
        """The leader tells all it knows: gateways first, then every living address."""
        self.elect()
        for (home, address), options in [
            *((entry, {**GATEWAY, **SERIAL}) for entry in sorted(self.gateways)),
            *((entry, SERIAL) for entry in sorted(self.held)),
        ]:
            if home.startswith(SPACES[1]):
                prefix = home.partition("/")[2]
                pool_id = self.ipam.request_pool(SPACES[1], prefix, v6=":" in prefix).pool_id
                answer = self.ipam.request_address(pool_id, address, options)
                assert str(answer.interface.ip) == address
                self.open_since.add(home)
                self.told.add((home, address))

    @rule(seconds=st.sampled_from([1.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def restart(self) -> None:
        before = self.ipam.state
        self.start()
        assert before in (self.ipam.state, before if not before.pools else None)

    @invariant()
    def the_state_is_sound(self) -> None:
        state = self.ipam.state
        assert decode(encode(state)) == state
        for pool in state.pools.values():
            first, last = pool.usable
            assert not pool.gateways - pool.leases
            assert not pool.confirmed - pool.leases
            assert all(first <= offset <= last for offset in pool.leases)

    @invariant()
    def every_living_address_is_leased(self) -> None:
        for home, address in self.held | self.gateways:
            space, _, prefix = home.partition("/")
            (pool,) = [
                p for key, p in self.ipam.state.pools.items() if (key[0], str(key[1])) == (space, prefix)
            ]
            assert pool.offset(ip_address(address)) in pool.leases


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
