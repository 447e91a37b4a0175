"""What Engine 29 sends and 28 does not, from its public source (moby v29, daemon/libnetwork).

No engine of that version was at hand to be recorded. Its wire format is that of 28, whose recordings are
played to us beside this.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driver.kernel.kinds import Port
from driver.kernel.names import namespace_name, port_name
from driver.mode import InSwarm
from driver.wish.values import EndpointId, NetworkId
from tests.contract.engine import accept
from tests.contract.test_recordings_real import Program

NETWORK, ENDPOINT = "hw422t0qzf7ebnirzku87hlct", "7" * 64
CREATE_NETWORK = {
    "NetworkID": NETWORK,
    "Options": {
        "com.docker.network.enable_ipv4": True,
        "com.docker.network.enable_ipv6": False,
        "com.docker.network.generic": {"vni": "5001"},
        "com.docker.network.internal": False,
    },
    "IPv4Data": [{"AddressSpace": "LocalDefault", "Gateway": "10.64.0.1/24", "Pool": "10.64.0.0/24"}],
    "IPv6Data": [],
}
NAMES = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
CREATE_ENDPOINT = {
    **NAMES,
    "Interface": {"Address": "10.64.0.3/24", "AddressIPv6": "", "MacAddress": ""},
    "Options": {"com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": []},
}
JOIN = {**NAMES, "SandboxKey": "/run/docker/netns/b7f7dd76f0f6", "Options": {}}


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path, InSwarm())
    yield made
    made.stop()


def call(program: Program, method: str, request: dict[str, Any]) -> dict[str, Any]:
    return accept(method, request, *program.post(method, request, {}))


def created(program: Program) -> None:
    call(program, "NetworkDriver.CreateNetwork", CREATE_NETWORK)
    call(program, "NetworkDriver.CreateEndpoint", CREATE_ENDPOINT)
    call(program, "NetworkDriver.Join", JOIN)


def test_a_container_whose_interface_cannot_be_set_up_leaves_twice(program: Program) -> None:
    """And is deleted then; the next try is a new endpoint with the same address (endpoint.go: sbJoin)."""
    created(program)
    call(program, "NetworkDriver.Leave", NAMES)
    call(program, "NetworkDriver.Leave", NAMES)
    call(program, "NetworkDriver.DeleteEndpoint", NAMES)
    again = {"EndpointID": "8" * 64}
    call(program, "NetworkDriver.CreateEndpoint", CREATE_ENDPOINT | again)
    assert call(program, "NetworkDriver.Join", JOIN | again)["InterfaceName"]["SrcName"]


def test_the_device_of_a_joined_endpoint_stays_until_the_endpoint_is_deleted(program: Program) -> None:
    """An engine from 28 to 29.6 whose device was gone removes it twice and panics (moby fb0f15c89a)."""
    created(program)
    call(program, "NetworkDriver.Leave", NAMES)
    _, revision = program.wish.snapshot()
    program.reconciler.wait_applied(NetworkId(NETWORK), revision, 8)
    have = program.kernel.read_place(namespace_name(NetworkId(NETWORK)))
    assert [obj.name for obj in have.values() if isinstance(obj, Port)] == [port_name(EndpointId(ENDPOINT))]


def test_egress_is_revoked_at_each_leave(program: Program) -> None:
    created(program)
    call(program, "NetworkDriver.ProgramExternalConnectivity", {**NAMES, "Options": {}})
    call(program, "NetworkDriver.RevokeExternalConnectivity", NAMES)
    call(program, "NetworkDriver.RevokeExternalConnectivity", NAMES)
    call(program, "NetworkDriver.Leave", NAMES)


def test_an_address_is_asked_for_with_the_name_of_its_endpoint(program: Program) -> None:
    asked = {"AddressSpace": "pyoverlay-global", "Pool": "10.64.0.0/24", "SubPool": "", "Options": {}}
    pool = call(program, "IpamDriver.RequestPool", asked | {"V6": False})["PoolID"]
    options = {"com.docker.network.endpoint.name": "web.1", "com.docker.network.endpoint.macaddress": ""}
    wanted = {"PoolID": pool, "Address": "", "Options": options}
    assert call(program, "IpamDriver.RequestAddress", wanted)["Address"].endswith("/24")


def test_a_pool_is_asked_for_by_its_size_alone(program: Program) -> None:
    """``--subnet 0.0.0.0/26``: any 64 addresses."""
    asked = {"AddressSpace": "pyoverlay-local", "Pool": "0.0.0.0/26", "SubPool": "", "Options": {}}
    answer = call(program, "IpamDriver.RequestPool", asked | {"V6": False})
    assert answer["Pool"].endswith("/26")
    assert not answer["Pool"].startswith("0.")


def test_numbers_and_unknown_labels_do_not_matter(program: Program) -> None:
    request = json.loads(json.dumps(CREATE_NETWORK))
    request["Options"]["com.docker.network.of.a.later.version"] = {"any": [1, None]}
    call(program, "NetworkDriver.CreateNetwork", request)
