"""The traps of the engine's protocol that the edge can fall into, by their numbers in the list of 30.

Each was found in the engine's source or by other drivers' users; the docstrings say what happens to
a driver that falls in.
"""

from __future__ import annotations

import base64
import json
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from flask.testing import FlaskClient

from driver.overlay import MULTICAST, Attachment
from driver.wish.errors import DriverError, NotFound
from driver.wish.model import Subnet
from ipam.errors import Exhausted
from plugin.app import create_app
from plugin.wire import Answer
from tests.contract.engine import accept, refusal
from tests.contract.samples import BODILESS, ENDPOINT, METHODS, NETWORK, sample
from tests.contract.services import FakeAddresses, FakeNetworks

EVERY = [*BODILESS, *METHODS]


def call(client: FlaskClient, method: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
    """Call as the engine does, and read the answer as the engine does."""
    body = b"" if request is None else json.dumps(request).encode()
    response = client.post(f"/{method}", data=body)
    return accept(method, request, response.status_code, response.data)


@pytest.mark.parametrize("content_type", [None, "application/json", "text/plain", "a/b; charset=\xff", ""])
def test_1_the_content_type_does_not_matter(client: FlaskClient, content_type: str | None) -> None:
    """Trap 1: the engine sends no Content-Type; Flask answers 415 to whoever insists on one."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    request = sample("NetworkDriver.Leave")
    response = client.post("/NetworkDriver.Leave", data=json.dumps(request), headers=headers)
    accept("NetworkDriver.Leave", request, response.status_code, response.data)


@pytest.mark.parametrize("method", EVERY)
def test_2_every_answer_is_an_object(client: FlaskClient, method: str) -> None:
    """Trap 2: an empty body is EOF to the engine, 204 and HTML are failures."""
    call(client, method, sample(method) if method in METHODS else None)


@pytest.mark.parametrize(
    "path", ["/", "/NetworkDriver.Nonsense", "//Plugin.Activate", "/NetworkDriver.Join/", "/%00"]
)
@pytest.mark.parametrize("verb", ["GET", "POST", "PUT", "OPTIONS", "DELETE", "BREW"])
def test_2_not_even_a_wrong_path_gets_html(client: FlaskClient, path: str, verb: str) -> None:
    """Trap 2 again: unknown methods are 404, so that the engine can tell what is not implemented."""
    response = client.open(path, method=verb)
    assert response.status_code == 404
    assert "no such method" in refusal(response.data)
    assert response.content_type == "application/vnd.docker.plugins.v1.2+json"


@pytest.mark.parametrize("verb", ["GET", "PUT", "OPTIONS", "DELETE", "PATCH", "BREW"])
def test_2_only_post_is_served(client: FlaskClient, verb: str) -> None:
    """Trap 2 again: 405 in JSON."""
    response = client.open("/NetworkDriver.Join", method=verb)
    assert response.status_code == 405
    assert "POST" in refusal(response.data)


@pytest.mark.parametrize("method", [m for m in METHODS if m.startswith("IpamDriver.")])
def test_3_an_ipam_failure_is_a_failure(method: str) -> None:
    """Trap 3: with status 200 the engine would look at "Error" for IPAM and at "Err" for the network."""
    full = Exhausted("PoolID", "10.0.1.0/24", "has no address left", "remove a container")
    client = create_app(FakeNetworks(), FakeAddresses(full)).test_client()
    response = client.post(f"/{method}", data=json.dumps(sample(method)))
    assert response.status_code == 409
    assert refusal(response.data) == str(full)


@pytest.mark.parametrize("method", [m for m in METHODS if m.startswith("NetworkDriver.")])
def test_3_a_network_failure_is_a_failure_and_never_404(method: str) -> None:
    """Trap 3: and the engine forgives 404 to some calls, so a failure would pass for a success."""
    client = create_app(
        FakeNetworks(NotFound("network abc is not known here")), FakeAddresses()
    ).test_client()
    response = client.post(f"/{method}", data=json.dumps(sample(method)))
    if method.endswith(("EndpointOperInfo", "ExternalConnectivity")):
        assert response.status_code == 200
    else:
        assert response.status_code == 500
        assert refusal(response.data) == "network abc is not known here"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("body", [b"", b"\n", b"  \r\n\t"])
def test_4_an_empty_body_is_refused(
    client: FlaskClient, networks: FakeNetworks, addresses: FakeAddresses, method: str, body: bytes
) -> None:
    """Trap 4: the engine's retries are empty; acting on defaults would be acting on nobody's wish."""
    response = client.post(f"/{method}", data=body)
    assert response.status_code == 400
    assert "retry" in refusal(response.data)
    assert [networks.calls, addresses.calls] == [[], []]


@pytest.mark.parametrize("method", BODILESS)
def test_4_methods_without_a_body_take_none(client: FlaskClient, method: str) -> None:
    """The other side of trap 4."""
    call(client, method)


def test_6_null_is_empty(client: FlaskClient, networks: FakeNetworks) -> None:
    """Trap 6: Go's encoder writes nil maps, slices and pointers as null."""
    call(client, "NetworkDriver.AllocateNetwork", {"NetworkID": NETWORK, "Options": None, "IPv4Data": None})
    call(client, "NetworkDriver.CreateNetwork", {"NetworkID": NETWORK, "Options": None, "IPv6Data": None})
    nulls = {"com.docker.network.generic": None}
    call(client, "NetworkDriver.GwAllocCheck", {"Options": nulls})
    ids = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
    call(client, "NetworkDriver.CreateEndpoint", {**ids, "Interface": None, "Options": None})
    call(client, "IpamDriver.RequestAddress", {"PoolID": "10.0.1.0/24", "Address": "", "Options": None})
    assert networks.calls == [
        ("allocate_network", NETWORK, {}, ()),
        ("create_network", NETWORK, {}, (), False),
        ("check_network", {}),
        ("create_endpoint", NETWORK, ENDPOINT, (), None, {}),
    ]


def test_10_the_services_options_are_answered_unchanged(client: FlaskClient) -> None:
    """Trap 10: the answer replaces the user's options on every node, so none may get lost here."""
    options = {"mtu": "1400", "com.docker.network.driver.mtu": "9000", "": "", "ключ": "значение"}
    answer = call(
        client, "NetworkDriver.AllocateNetwork", sample("NetworkDriver.AllocateNetwork", Options=options)
    )
    assert answer["Options"] == {**options, "vni": "70001"}


def test_16_what_the_engine_gave_is_not_repeated(networks: FakeNetworks) -> None:
    """Trap 16: an echoed MAC or address is "modified", and the endpoint is rolled back."""
    given = {"Address": "10.0.1.5/24", "AddressIPv6": "fd00:1::5/64", "MacAddress": "02:42:0A:00:01:63"}

    class Echo(FakeNetworks):
        def create_endpoint(self, *request: Any) -> Any:
            super().create_endpoint(*request)
            return request[3]

    echo = Echo()
    client = create_app(echo, FakeAddresses()).test_client()
    request = sample("NetworkDriver.CreateEndpoint", Interface=given)
    assert call(client, "NetworkDriver.CreateEndpoint", request) == {}
    interfaces = (ip_interface("10.0.1.5/24"), ip_interface("fd00:1::5/64"))
    assert echo.calls[0][3:5] == (interfaces, "02:42:0a:00:01:63")


def test_16_a_missing_mac_is_answered(client: FlaskClient) -> None:
    """Trap 16, the other half: without one the engine shows none and peers know none."""
    answer = call(client, "NetworkDriver.CreateEndpoint", sample("NetworkDriver.CreateEndpoint"))
    assert answer == {"Interface": {"MacAddress": "02:42:0a:00:01:05"}}


def test_19_join_answers_no_gateway(client: FlaskClient) -> None:
    """Trap 19: a gateway takes docker_gwbridge, and with it egress and published ports, away."""
    subnets = [
        {"Pool": "10.0.1.0/24", "Gateway": "10.0.1.1/24"},
        {"Pool": "10.0.2.0/24", "Gateway": "10.0.2.1/24"},
    ]
    call(client, "NetworkDriver.CreateNetwork", sample("NetworkDriver.CreateNetwork", IPv4Data=subnets))
    assert call(client, "NetworkDriver.Join", sample("NetworkDriver.Join")) == {
        "InterfaceName": {"SrcName": "pyo1190b22f0dca", "DstPrefix": "eth"},
        "StaticRoutes": [{"Destination": "10.0.2.0/24", "RouteType": 0, "NextHop": "10.0.2.1"}],
    }


def test_a_route_without_a_next_hop_is_one_on_the_link(
    client: FlaskClient, networks: FakeNetworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine adds a route of type 1 to the interface (moby libnetwork/osl: setInterfaceRoutes)."""
    attached = Attachment("pyo1190b22f0dca", (MULTICAST,))
    monkeypatch.setattr(networks, "join", lambda *_: attached)
    assert call(client, "NetworkDriver.Join", sample("NetworkDriver.Join"))["StaticRoutes"] == [
        {"Destination": "224.0.0.0/4", "RouteType": 1}
    ]


def test_25_an_auxiliary_address_may_be_nonsense(client: FlaskClient, networks: FakeNetworks) -> None:
    """Trap 25: the engine itself writes "<nil>" for an auxiliary address outside of the pool's range."""
    data = [
        {"AuxAddresses": {"r": "<nil>", "s": "10.0.1.9"}, "Gateway": "10.0.1.1/24", "Pool": "10.0.1.0/24"}
    ]
    call(client, "NetworkDriver.CreateNetwork", sample("NetworkDriver.CreateNetwork", IPv4Data=data))
    assert networks.calls[0][3] == (Subnet(ip_network("10.0.1.0/24"), ip_address("10.0.1.1")),)


def test_25_a_release_of_nothing_succeeds(client: FlaskClient, addresses: FakeAddresses) -> None:
    """Trap 25: the engine forgets what it releases; a failure would leak it for ever."""
    call(client, "IpamDriver.ReleaseAddress", {"PoolID": "gone", "Address": ""})
    call(client, "IpamDriver.ReleasePool", {"PoolID": "gone"})
    assert addresses.calls == [("release_address", "gone", ""), ("release_pool", "gone")]


def test_26_operational_info_asks_nobody() -> None:
    """Trap 26: the engine asks it several times for each container; here no service, no lock is touched."""
    client = create_app(FakeNetworks(AssertionError()), FakeAddresses(AssertionError())).test_client()
    answer = call(client, "NetworkDriver.EndpointOperInfo", sample("NetworkDriver.EndpointOperInfo"))
    assert answer == {"Value": {}}
    call(client, "NetworkDriver.GetCapabilities")


@pytest.mark.parametrize("network", ["a" * 64, NETWORK, "0123456789abcdef"])
def test_28_network_ids_have_any_length(client: FlaskClient, networks: FakeNetworks, network: str) -> None:
    """Trap 28: 64 hexadecimal digits stand-alone, 25 characters of base 36 in a Swarm."""
    call(client, "NetworkDriver.DeleteNetwork", {"NetworkID": network})
    assert networks.calls == [("delete_network", network)]


@pytest.mark.parametrize("network", ["", "../../etc", "a b", "a" * 129, "é", "a\n"])
def test_28_but_they_are_ids(client: FlaskClient, networks: FakeNetworks, network: str) -> None:
    """Names of files and devices are made of them."""
    response = client.post("/NetworkDriver.DeleteNetwork", data=json.dumps({"NetworkID": network}))
    assert response.status_code == 400
    assert "NetworkID" in refusal(response.data)
    assert networks.calls == []


def test_29_the_mac_in_base64_is_not_read(client: FlaskClient, networks: FakeNetworks) -> None:
    """Trap 29: `--mac-address` comes twice, once as Go's []byte; Interface has it in letters."""
    options = {"com.docker.network.endpoint.macaddress": base64.b64encode(bytes(6)).decode()}
    given = {"Address": "10.0.1.5/24", "MacAddress": "02:42:ac:11:00:02"}
    request = sample("NetworkDriver.CreateEndpoint", Options=options, Interface=given)
    call(client, "NetworkDriver.CreateEndpoint", request)
    assert networks.calls[0][4:] == ("02:42:ac:11:00:02", options)


def test_connectivity_reaches_as_far_as_the_scope() -> None:
    """Without ConnectivityScope "global" a Swarm gives no names across hosts (agent.go: clusterAgent)."""
    for scope in ("local", "global"):
        client = create_app(FakeNetworks(scope=scope), FakeAddresses()).test_client()
        assert call(client, "NetworkDriver.GetCapabilities") == {
            "Scope": scope,
            "ConnectivityScope": scope,
            "GwAllocChecker": True,
        }


def test_wrong_options_are_refused_before_addresses_are_allocated() -> None:
    """GwAllocCheck (engine 28.0+) is the first call of `docker network create`, and passes the options."""
    client = create_app(FakeNetworks(DriverError("vni: 'x' is wrong")), FakeAddresses()).test_client()
    response = client.post(
        "/NetworkDriver.GwAllocCheck", data=json.dumps(sample("NetworkDriver.GwAllocCheck"))
    )
    assert refusal(response.data) == "vni: 'x' is wrong"


def test_internal_networks_are_told_apart(client: FlaskClient, networks: FakeNetworks) -> None:
    """The engine sends `com.docker.network.internal` for `--internal` only."""
    for options in ({"com.docker.network.internal": True}, {}):
        call(client, "NetworkDriver.CreateNetwork", sample("NetworkDriver.CreateNetwork", Options=options))
    assert [asked[-1] for asked in networks.calls] == [True, False]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (2, {"keys": 1}),
        (3, None),
        (1, None),
        (1, {}),
        (1, {"Address": ""}),
        (1, {"Address": "node-1"}),
        (1, []),
    ],
)
def test_a_hint_that_says_nothing_is_no_error(
    client: FlaskClient, networks: FakeNetworks, kind: int, data: object
) -> None:
    """Discovery is a hint: keys of the built-in driver and addresses that are none are passed over."""
    for method in ("NetworkDriver.DiscoverNew", "NetworkDriver.DiscoverDelete"):
        call(client, method, {"DiscoveryType": kind, "DiscoveryData": data})
    assert networks.calls == []


def test_hosts_are_passed_on(client: FlaskClient, networks: FakeNetworks) -> None:
    """The key is "Self", not "self" as the engine's documents have it; it is absent in a deletion."""
    call(client, "NetworkDriver.DiscoverNew", sample("NetworkDriver.DiscoverNew"))
    gone = {"DiscoveryType": 1, "DiscoveryData": {"Address": "fd00::2", "BindAddress": ""}}
    call(client, "NetworkDriver.DiscoverDelete", gone)
    assert networks.calls == [
        ("node_discovered", ip_address("10.77.0.1"), True),
        ("node_lost", ip_address("fd00::2")),
    ]


def test_the_plainest_answer_is_an_empty_object() -> None:
    """`{}` is what Go decodes into a struct without an error."""
    assert Answer().model_dump_json(exclude_none=True) == "{}"
