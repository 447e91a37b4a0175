"""What the engine's lists say of services; the lists are cut down from those of engines 20.10 and 28.5."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from driver.swarm.vips import is_settled, offer, our_networks
from driver.wish.records import ServiceRecord
from driver.wish.values import NetworkId

OURS, THEIRS = NetworkId("k4cwv0r6gotqrnnp3uk98tcl5"), NetworkId("ingress0000000000000000000")
VIP = "10.201.10.2"


def network(identity: str, **options: str) -> dict[str, Any]:
    return {"Id": identity, "Scope": "swarm", "Options": options or None}


def service(identity: str = "s1", name: str = "web", *vips: tuple[str, str]) -> dict[str, Any]:
    given = vips or ((OURS, f"{VIP}/24"), (THEIRS, "10.0.0.9/24"))
    listed = [{"NetworkID": network, "Addr": address} for network, address in given]
    return {
        "ID": identity,
        "Spec": {"Name": name},
        "Endpoint": {"Spec": {"Mode": "vip"}, "VirtualIPs": listed},
    }


def task(number: int, state: str = "running", desired: str = "running", of: str = "s1") -> dict[str, Any]:
    attached = [
        {"Network": {"ID": THEIRS}, "Addresses": [f"10.0.0.{number}/24"]},
        {"Network": {"ID": OURS}, "Addresses": [f"10.201.10.{number}/24"]},
    ]
    return {
        "ID": f"t{number}",
        "ServiceID": of,
        "DesiredState": desired,
        "Status": {"State": state},
        "NetworksAttachments": attached,
    }


def record(*numbers: int, vip: str = VIP, name: str = "web") -> ServiceRecord:
    backends = tuple(ip_address(f"10.201.10.{number}") for number in numbers)
    return ServiceRecord(OURS, ip_address(vip), name, backends)


def test_our_networks_bear_our_options_whatever_the_driver_is_called() -> None:
    listed = [network(OURS, vni="8388609", vxlan_port="4789", mtu="1400"), network(THEIRS)]
    listed += [network("x", vni="3"), {"Id": "y"}, {"Options": {"vni": "1", "vxlan_port": "2"}}]
    assert our_networks(listed) == {OURS}


def test_a_virtual_address_leads_to_the_tasks_that_run_in_order_of_addresses() -> None:
    tasks = [task(11), task(3), task(4, state="starting"), task(5, desired="shutdown"), task(6, of="s2")]
    assert offer([OURS], [service()], tasks) == {OURS: {record(3, 11)}}


def test_a_service_without_tasks_and_a_network_without_services_are_said_too() -> None:
    other = NetworkId("other")
    assert offer([OURS, other], [service()], []) == {OURS: {record()}, other: frozenset()}


def test_services_without_an_address_of_ours_are_none_of_our_business() -> None:
    dnsrr = {"ID": "s3", "Spec": {"Name": "d"}, "Endpoint": {"Spec": {"Mode": "dnsrr"}}}
    young = {"ID": "s4", "Endpoint": {}, "Spec": {}}
    alien = service("s5", "alien", (THEIRS, "10.0.0.8/24"), (OURS, ""), (OURS, "fd00::1/64"))
    assert offer([OURS], [dnsrr, young, alien, {}], [task(3, of="s3"), {}, task(4)]) == {OURS: frozenset()}


def test_two_services_of_one_network_and_one_service_in_two() -> None:
    second = service("s2", "api", (OURS, "10.201.10.20/24"))
    said = offer([OURS, THEIRS], [service(), second], [task(3), task(6, of="s2")])
    assert said[OURS] == {record(3), record(6, vip="10.201.10.20", name="api")}
    assert {str(r.vip): [str(b) for b in r.backends] for r in said[THEIRS]} == {"10.0.0.9": ["10.0.0.3"]}


def test_at_rest_is_when_every_wanted_task_runs_and_no_update_does() -> None:
    assert is_settled([service()], [task(3), task(4)])
    assert is_settled([], [])
    assert not is_settled([service()], [task(3), task(4, state="preparing")])
    assert not is_settled([{**service(), "UpdateStatus": {"State": "updating"}}], [task(3)])
    assert is_settled([{**service(), "UpdateStatus": {"State": "completed"}}], [task(3)])


def test_a_job_leads_to_the_tasks_that_run_and_refuses_when_all_have_completed() -> None:
    """They are to be complete from the beginning on (swarmkit, jobs/replicated and jobs/global)."""
    job = [task(3, desired="complete"), task(4, state="complete", desired="complete")]
    assert offer([OURS], [service()], job) == {OURS: {record(3)}}
    assert offer([OURS], [service()], job[1:]) == {OURS: {record()}}


def test_a_job_that_is_on_its_way_out_leads_nowhere() -> None:
    removed = [task(3, desired="remove"), task(4, desired="shutdown")]
    assert offer([OURS], [service()], removed) == {OURS: {record()}}


def test_a_job_is_at_rest_when_its_tasks_run_or_have_ended() -> None:
    ended = [task(n, state=s, desired="complete") for n, s in enumerate(("complete", "failed", "running"), 3)]
    assert is_settled([service()], ended)
    assert not is_settled([service()], [*ended, task(9, state="starting", desired="complete")])
    assert not is_settled([service()], [task(3, state="failed"), *ended]), "a service begins another task"
