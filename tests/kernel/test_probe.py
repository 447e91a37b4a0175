"""Whether a host answers, on real wires."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from driver.cluster import probe
from tests.kernel.hosts import Host

pytestmark = pytest.mark.kernel
ALIVE = {ip_address("192.0.2.2"), ip_address("2001:db8::2")}
DEAD = {ip_address("192.0.2.9"), ip_address("2001:db8::9"), ip_address("198.51.100.1")}


@pytest.fixture
def wired(hosts: Callable[[], Host]) -> Host:
    """A host with a neighbour that answers."""
    a, b = hosts(), hosts()
    a.run(f"ip link add u0 type veth peer name u0 netns {b.path}")
    for number, host in enumerate((a, b), 1):
        host.run(f"ip address add 192.0.2.{number}/24 dev u0; ip link set u0 up")
        host.run(f"ip address add 2001:db8::{number}/64 dev u0 nodad")
    return a


def test_who_lives_answers(wired: Host) -> None:
    assert wired.inside(lambda: probe.answering(ALIVE | DEAD)) == ALIVE


def test_a_large_packet_is_answered_only_where_it_passes_whole(wired: Host) -> None:
    wired.run("ip link set u0 mtu 9000")  # the other end has 1500
    assert wired.inside(lambda: probe.answering(ALIVE, 1500)) == ALIVE
    assert wired.inside(lambda: probe.answering(ALIVE, 1600)) == set()


def test_who_has_been_cut_off_does_not(wired: Host) -> None:
    wired.run("ip link set u0 down")
    assert wired.inside(lambda: probe.answering(ALIVE)) == set()


def test_a_storm_of_answers_to_others_ends(wired: Host) -> None:
    storm = ["nsenter", f"--net={wired.path}", "ping", "-q", "-i", "0.002", "192.0.2.2"]
    with subprocess.Popen(storm, stdout=subprocess.DEVNULL) as ping:
        try:
            assert wired.inside(lambda: probe.answering(DEAD)) == set()
        finally:
            ping.kill()


def test_without_the_right_to_ask_nobody_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", refused)
    assert probe.answering(ALIVE) == set()
