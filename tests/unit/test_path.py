"""The MTU that carries to all hosts: told by each, and beyond the usual only after an answer."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from driver.cluster.ledger.codec import decode_node, encode_node, node_key
from driver.cluster.path import PathMtu
from driver.reconcile.container_mtus import Limit, limits
from driver.wish.model import Endpoint, Host, Network, PeerNode, Peers, Phase, Segment, Subnet
from driver.wish.records import NodeRecord
from driver.wish.state import State, with_endpoint, with_network
from driver.wish.values import Address, EndpointId, Mac, NetworkId, NodeId, Vni
from driver.wish.wish import Wish
from tests.fakes.disk import MemoryDisk
from tests.kernel.hosts import eventually

Node = tuple[int | None, float | None]
"""MTU as told, and since when the node is away."""


def _peers(*nodes: Node) -> Peers:
    return Peers({NodeId(f"n{n}"): PeerNode(_vtep(n), since, mtu) for n, (mtu, since) in enumerate(nodes, 2)})


def _vtep(number: int) -> Address:
    return ip_address(f"192.0.2.{number}")


class Path:
    """What a path carries to each host, by number; *asked* are the sizes tried, *lowered* the wishes."""

    def __init__(self, **carries: int) -> None:
        self.carries = {_vtep(int(name[1:])): size for name, size in carries.items()}
        self.asked: list[tuple[set[Address], int]] = []
        self.lowered: list[int | None] = []
        self.answers = threading.Event()
        self.answers.set()

    def probe(self, vteps: Collection[Address], size: int) -> Collection[Address]:
        self.asked.append((set(vteps), size))
        self.answers.wait()
        return {vtep for vtep in vteps if self.carries.get(vtep, 0) >= size}


@contextmanager
def agreeing(state: State, path: Path, again: float = 60.0, trust: float = 0.0) -> Iterator[Wish]:
    wish = Wish(MemoryDisk(state))
    wish.change(lambda s: replace(s, peers=state.peers, mtu=state.mtu))
    part = PathMtu(
        wish,
        probe=path.probe,
        lower=lambda s: path.lowered.append(s.host.path_mtu),
        again=again,
        trust=trust,
    )
    part.start()
    try:
        yield wish
    finally:
        part.stop()


def _state(own: int, *nodes: Node, known: int | None = None) -> State:
    return State(Host(NodeId("me"), _vtep(1), path_mtu=known), peers=_peers(*nodes), mtu=own)


@pytest.mark.parametrize(
    ("own", "nodes", "path", "agreed"),
    [
        (1500, [(1500, None), (1500, None)], Path(), 1500),
        (1500, [(1400, None), (1500, None)], Path(), 1400),
        (1400, [(1500, None)], Path(), 1400),
        (1500, [(None, None)], Path(), 1500),
        (9000, [(1500, None), (9000, None)], Path(n3=9000), 1500),
        (9000, [(9000, None), (9000, None)], Path(n2=9000, n3=9000), 9000),
        (9000, [(9000, None), (9000, None)], Path(n2=9000, n3=8500), 1500),
        (9000, [(9000, None), (None, None)], Path(n2=9000, n3=9000), 9000),
        (9000, [(9000, None), (None, None)], Path(n2=9000, n3=1500), 1500),
        (9000, [(9000, None), (9000, 1.0)], Path(n2=9000), 1500),
        (9000, [(9000, 1.0)], Path(), 1500),
        (9000, [(9000, None), (9000, 1.0)], Path(n2=9000, n3=9000), 9000),
        (9000, [(9000, None), (1400, 1.0)], Path(n2=9000), 1400),
        (9000, [], Path(), 1500),
        (1400, [], Path(), 1400),
    ],
)
def test_what_all_can_carry(own: int, nodes: list[Node], path: Path, agreed: int) -> None:
    with agreeing(_state(own, *nodes), path) as wish:
        assert eventually(lambda: bool(path.lowered))
        assert wish.state.host.path_mtu == agreed


def test_what_is_usual_is_not_asked_for_and_an_answer_counts_for_less_too() -> None:
    path = Path(n2=9000)
    with agreeing(_state(1500, (1500, None)), path) as wish:
        assert eventually(lambda: bool(path.lowered))
        assert path.asked == []
        wish.change(lambda s: replace(s, mtu=9000, peers=_peers((9000, None))))
        assert eventually(lambda: wish.state.host.path_mtu == 9000)
        wish.change(lambda s: replace(s, mtu=8000))
        assert eventually(lambda: wish.state.host.path_mtu == 8000)
        assert path.asked == [({_vtep(2)}, 9000)]


def test_a_silent_host_is_named_once_asked_again_and_believed_when_it_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = Path()
    with agreeing(_state(9000, (9000, None)), path, again=0.05) as wish:
        assert eventually(lambda: len(path.asked) > 3)
        assert wish.state.host.path_mtu == 1500
        said = [line for line in caplog.messages if "did not answer" in line]
        assert len(said) == 1
        assert all(word in said[0] for word in ("192.0.2.2", "9000", "-o mtu="))
        path.carries = {_vtep(2): 9000}
        assert eventually(lambda: wish.state.host.path_mtu == 9000)


def test_while_a_new_host_is_asked_what_was_agreed_stands() -> None:
    path = Path(n2=9000)
    with agreeing(_state(9000, (9000, None)), path) as wish:
        assert eventually(lambda: wish.state.host.path_mtu == 9000)
        path.answers.clear()
        try:
            wish.change(lambda s: replace(s, peers=_peers((9000, None), (9000, None))))
            assert eventually(lambda: ({_vtep(3)}, 9000) in path.asked)
            assert wish.state.host.path_mtu == 9000
        finally:
            path.answers.set()
        assert eventually(lambda: wish.state.host.path_mtu == 1500)


@pytest.mark.parametrize(("trust", "agreed"), [(3600.0, 9000), (0.0, 1500)])
def test_after_a_restart_silence_proves_nothing_for_a_while(
    trust: float, agreed: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path()
    with agreeing(_state(9000, (9000, None), known=9000), path, again=0.05, trust=trust) as wish:
        assert eventually(lambda: len(path.asked) > 3)
        assert wish.state.host.path_mtu == agreed
        assert caplog.text.count("did not answer") == (agreed == 1500)
        wish.change(lambda s: replace(s, mtu=8000))
        assert eventually(lambda: wish.state.host.path_mtu == min(agreed, 8000))


@pytest.mark.parametrize(("known", "first"), [(None, 1500), (9000, 9000), (1400, 1400)])
def test_before_anybody_answered_the_last_agreement_counts(known: int | None, first: int) -> None:
    wish = Wish(MemoryDisk(_state(9000, known=known)))  # soft state is gone, as after a restart
    part = PathMtu(wish, probe=Path().probe)
    part.start()
    try:
        assert wish.state.host.path_mtu == first
    finally:
        part.stop()


def test_a_node_tells_its_mtu_and_an_older_one_none() -> None:
    record = NodeRecord(NodeId("n"), _vtep(2), 9000)
    assert decode_node(node_key(record.id), encode_node(record)) == record
    older = replace(record, mtu=None)
    assert encode_node(older) == '{"vtep":"192.0.2.2"}'
    assert decode_node(node_key(record.id), encode_node(older)) == older
    for odd in ("0", "-1", '"1500"', "true", "null", "1e3"):
        assert decode_node(node_key(record.id), f'{{"vtep":"192.0.2.2","mtu":{odd}}}') == older


@pytest.mark.parametrize(
    ("prefixes", "chosen", "found"),
    [
        (["10.1.0.0/24"], {}, [Limit("/box", Mac("02:42:0a:01:00:05"), 1350)]),
        (["10.1.0.0/24"], {"mtu": 1450}, []),
        (["10.1.0.0/24"], {"underlay_mtu": 1500}, []),
        (["10.1.0.0/24", "fd00::/64"], {}, [Limit("/box", Mac("02:42:0a:01:00:05"), 1350)]),
    ],
)
def test_running_containers_have_a_limit_unless_the_user_chose_their_mtu(
    prefixes: list[str], chosen: dict[str, int], found: list[Limit]
) -> None:
    subnets = tuple(Subnet(ip_network(prefix)) for prefix in prefixes)
    network = replace(Network(NetworkId("net"), (Segment(Vni(7), subnets),)), **chosen)  # type: ignore[arg-type]
    endpoint = Endpoint(
        EndpointId("ep"),
        network.id,
        (ip_interface("10.1.0.5/24"),),
        Mac("02:42:0a:01:00:05"),
        Phase.JOINED,
        "/box",
    )
    state = with_endpoint(with_network(_state(1500, known=1400), network), endpoint)
    state = replace(state, endpoints={endpoint.id: endpoint})
    assert list(limits(state)) == found
    low = replace(state, host=replace(state.host, path_mtu=1200))
    least = [replace_mtu(limit, 1280 if len(prefixes) > 1 else 1150) for limit in found]
    assert list(limits(low)) == least
    assert list(limits(replace(state, mtu=None))) == []


def replace_mtu(limit: Limit, mtu: int) -> Limit:
    return limit._replace(mtu=mtu)
