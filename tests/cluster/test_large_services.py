"""Services of thousands of tasks: what the store takes in a request is limited (--max-request-bytes)."""

from __future__ import annotations

from ipaddress import ip_address

from driver.wish.records import ServiceRecord
from tests.cluster.conftest import MakeHost
from tests.cluster.harness import NET, endpoint, service, wait_until


def test_many_services_of_three_thousand_tasks_and_a_small_one(host: MakeHost) -> None:
    """Together they are 2 MB; each is there soon, and so is what else this host has to say."""
    tasks = tuple(ip_address("10.128.100.0") + number for number in range(3000))
    large = [ServiceRecord(NET, ip_address(f"10.0.8.{n}"), f"large{n}", tasks) for n in range(40)]
    leader, other = host("a"), host("b")
    other.join()
    leader.join(endpoint("a", 1))
    leader.lead(*large, service(1, 5))
    wait_until(lambda: other.services() == {*large, service(1, 5)}, 20)
    leader.lead(*large[:20], service(1, 6))
    wait_until(lambda: other.services() == {*large[:20], service(1, 6)}, 20)
    assert leader.published()
