"""The rules by which exceptions become answers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import driver.wish.errors
import ipam.errors
from driver.wish.errors import DriverError
from ipam.errors import IpamError
from plugin.app import create_app
from plugin.errors import STATUS, status_of
from tests.contract.engine import refusal
from tests.contract.samples import sample
from tests.contract.services import FakeAddresses, FakeNetworks


def tree(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


EVERY = [*tree(DriverError), *tree(IpamError)]


def test_the_trees_are_found() -> None:
    assert {driver.wish.errors.DeadlineExceeded, ipam.errors.Exhausted} <= set(EVERY)


@pytest.mark.parametrize("error", [e for e in EVERY if e.__module__ in ("driver.wish.errors", "ipam.errors")])
def test_every_class_of_the_trees_has_a_rule_of_its_own(error: type[Exception]) -> None:
    """Whoever adds an error decides what it means to the engine's user."""
    assert error in STATUS


@pytest.mark.parametrize("error", EVERY)
def test_no_error_is_a_404(error: type[Exception]) -> None:
    """The engine takes 404 for "not implemented" and goes on."""
    found = next(STATUS[base] for base in error.__mro__ if base in STATUS)
    assert 400 <= found < 600
    assert found != 404


def test_a_class_without_a_rule_has_its_bases() -> None:
    class TooBig(driver.wish.errors.BadRequest):
        pass

    assert status_of(TooBig("x")) == 400
    assert status_of(KeyError("x")) is None


def test_what_nobody_foresaw_shows_a_reference_only(caplog: pytest.LogCaptureFixture) -> None:
    """The traceback, which may hold anything, is in the log under the reference that the user sees."""
    client = create_app(FakeNetworks(KeyError("secret")), FakeAddresses()).test_client()
    response = client.post("/NetworkDriver.Join", data=json.dumps(sample("NetworkDriver.Join")))
    assert response.status_code == 500
    message = refusal(response.data)
    assert "secret" not in message
    reference = message.split("ref ")[1].split(")")[0]
    assert any(reference in record.message and record.exc_info for record in caplog.records)


def test_an_expected_failure_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Method, status and sentence; no traceback."""
    client = create_app(
        FakeNetworks(driver.wish.errors.Conflict("vni 7 is taken")), FakeAddresses()
    ).test_client()
    client.post("/NetworkDriver.CreateNetwork", data=json.dumps(sample("NetworkDriver.CreateNetwork")))
    assert [r.getMessage() for r in caplog.records] == ["NetworkDriver.CreateNetwork: 409 vni 7 is taken"]
    assert [r.exc_info for r in caplog.records] == [None]
