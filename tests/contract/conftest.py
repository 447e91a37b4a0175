"""Fixtures: the application on services that each test can replace."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from plugin.app import create_app
from plugin.ipam_driver import IpamCalls
from plugin.network_driver import NetworkCalls
from tests.contract.services import FakeAddresses, FakeNetworks


@pytest.fixture
def networks() -> FakeNetworks:
    return FakeNetworks()


@pytest.fixture
def addresses() -> FakeAddresses:
    return FakeAddresses()


@pytest.fixture
def network_service(networks: FakeNetworks) -> NetworkCalls:
    """The network service under the application; a module may put the real one here."""
    return networks


@pytest.fixture
def ipam_service(addresses: FakeAddresses) -> IpamCalls:
    """The address service under the application; likewise."""
    return addresses


@pytest.fixture
def client(network_service: NetworkCalls, ipam_service: IpamCalls) -> FlaskClient:
    return create_app(network_service, ipam_service).test_client()
