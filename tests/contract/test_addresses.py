"""What the network driver is told keeps the IPAM driver from giving an address: through HTTP, with both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from driver.mode import Alone
from tests.contract.test_recordings_real import Program

NET = "a1" * 32
POOL = "10.54.0.0/29"


class Engine:
    """A stand-alone engine that makes a network of our IPAM, as 28.5 does."""

    def __init__(self, folder: Path) -> None:
        self.program = Program(folder, Alone())
        self.pool_id = ""

    def call(self, method: str, **request: Any) -> dict[str, Any]:
        """Return the answer; a refusal has the key Err."""
        _, body = self.program.post(method, request, {})
        answer: dict[str, Any] = json.loads(body)
        return answer

    def address(self, address: str = "", **options: str) -> str:
        """Ask for an address; return it, or the refusal."""
        answer = self.call(
            "IpamDriver.RequestAddress", PoolID=self.pool_id, Address=address, Options=options or None
        )
        return str(answer.get("Error") or answer["Address"].partition("/")[0])

    def create(self, **aux: str) -> None:
        space = self.call("IpamDriver.GetDefaultAddressSpaces")["LocalDefaultAddressSpace"]
        answer = self.call("IpamDriver.RequestPool", AddressSpace=space, Pool=POOL)
        self.pool_id = answer["PoolID"]
        gateway = self.address(RequestAddressType="com.docker.network.gateway")
        assert [self.address(address) for address in aux.values()] == list(aux.values())
        data = {
            "Pool": POOL,
            "Gateway": f"{gateway}/29",
            "AuxAddresses": {name: f"{address}/29" for name, address in aux.items()} | {"out": "<nil>"},
        }
        self.call("NetworkDriver.CreateNetwork", NetworkID=NET, IPv4Data=[data], IPv6Data=[])

    def remove(self, *aux: str) -> None:
        for address in ("10.54.0.1", *aux):
            self.call("IpamDriver.ReleaseAddress", PoolID=self.pool_id, Address=address)
        self.call("IpamDriver.ReleasePool", PoolID=self.pool_id)
        self.call("NetworkDriver.DeleteNetwork", NetworkID=NET)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path)
    yield engine
    engine.program.stop()


def test_an_auxiliary_address_is_reserved_until_its_network_goes(engine: Engine) -> None:
    engine.create(router="10.54.0.3", printer="10.54.0.5")
    for _ in range(2):
        assert 'Address "10.54.0.3": belongs to' in engine.address("10.54.0.3")
        engine.call("IpamDriver.ReleaseAddress", PoolID=engine.pool_id, Address="10.54.0.3")
    given = [engine.address() for _ in range(3)]
    assert given == ["10.54.0.2", "10.54.0.4", "10.54.0.6"]
    assert "no address is left" in engine.address()
    for address in given:
        engine.call("IpamDriver.ReleaseAddress", PoolID=engine.pool_id, Address=address)
    engine.remove("10.54.0.3", "10.54.0.5")
    assert not engine.program.ipam.state.pools
    engine.create()
    assert engine.address("10.54.0.3") == "10.54.0.3"


def test_it_is_reserved_after_a_restart_of_the_plugin(engine: Engine) -> None:
    engine.create(router="10.54.0.3")
    (network,) = engine.program.wish.state.networks.values()
    assert network.segments[0].subnets[0].reserved == {ip_address("10.54.0.3")}
    engine.program.restart()
    assert 'Address "10.54.0.3": belongs to' in engine.address("10.54.0.3")
