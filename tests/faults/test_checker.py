"""Every rule of the checker bites: a lab that is right, spoilt in one place at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.checker import FORGOTTEN, GRACE, RESTARTS, Expected, problems
from tests.faults.facts import FLOOD, Attached, Facts, HostFacts, Space

NETWORK = "n" * 25
NOW = 1000.0


def container(host: int) -> Attached:
    return Attached(NETWORK, f"10.0.0.{host}", f"02:00:00:00:00:0{host}", f"{host}" * 64, 100, f"/c{host}")


def host(number: int, other: int) -> HostFacts:
    mine, theirs = container(number), container(other)
    return HostFacts(
        name=f"h{number}",
        vtep=f"192.0.2.{number}",
        attached=(mine,),
        networks=frozenset({NETWORK}),
        spaces={
            NETWORK[:12]: Space(
                frozenset({(theirs.mac, f"192.0.2.{other}"), (FLOOD, f"192.0.2.{other}")}),
                frozenset({(theirs.address, theirs.mac)}),
                frozenset({f"port{mine.endpoint[:11]}"}),
            )
        },
        foreign="theirs",
        state={
            "host": {"id": f"node{number}"},
            "networks": [{"id": NETWORK}],
            "endpoints": [{"id": mine.endpoint, "interfaces": [mine.address], "phase": "joined"}],
        },
    )


def right() -> Facts:
    store = {f"/pyoverlay/v1/nodes/node{n}": {"vtep": f"192.0.2.{n}"} for n in (1, 2)} | {
        f"/pyoverlay/v1/endpoints/{NETWORK}/10.0.0.{n}": {
            "mac": container(n).mac,
            "node": f"node{n}",
            "endpoint": container(n).endpoint,
        }
        for n in (1, 2)
    }
    return Facts((host(1, 2), host(2, 1)), store)


EXPECTED = Expected(foreign={"h1": "theirs", "h2": "theirs"})


def in_h1(**changes: Any) -> Facts:
    facts = right()
    return dataclasses.replace(facts, hosts=(dataclasses.replace(facts.hosts[0], **changes), facts.hosts[1]))


def in_space(**changes: Any) -> Facts:
    old = right().hosts[0].spaces[NETWORK[:12]]
    return in_h1(spaces={NETWORK[:12]: dataclasses.replace(old, **changes)})


def in_state(**changes: Any) -> Facts:
    return in_h1(state={**right().hosts[0].state, **changes})


def in_store(change: Callable[[dict[str, dict[str, str]]], object]) -> Facts:
    store = {key: dict(value) for key, value in (right().store or {}).items()}
    change(store)
    return dataclasses.replace(right(), store=store)


def endpoint_of(number: int) -> str:
    return f"/pyoverlay/v1/endpoints/{NETWORK}/10.0.0.{number}"


STALE_FDB = frozenset({*right().hosts[0].spaces[NETWORK[:12]].fdb, ("02:00:00:00:00:09", "192.0.2.9")})

SPOILT = {
    "FDB row ('00:00:00:00:00:00', '192.0.2.2') is missing": in_space(
        fdb=frozenset({(container(2).mac, "192.0.2.2")})
    ),
    "FDB row ('02:00:00:00:00:09', '192.0.2.9') is stale": in_space(fdb=STALE_FDB),
    "neighbour ('10.0.0.2', '02:00:00:00:00:02') is missing": in_space(neighbours=frozenset()),
    "neighbour ('10.0.0.2', '02:00:00:00:00:09') is stale": in_space(
        neighbours=frozenset({("10.0.0.2", "02:00:00:00:00:02"), ("10.0.0.2", "02:00:00:00:00:09")})
    ),
    "port11111111111 of a running container is missing": in_space(ports=frozenset()),
    "portxx belongs to no running container": in_space(ports=frozenset({"port11111111111", "portxx"})),
    "device vx1 is down or on no bridge": in_space(down=frozenset({"vx1"})),
    "no namespace for network": in_h1(spaces={}),
    "namespace of network other, which has no container": in_h1(
        spaces={**right().hosts[0].spaces, "other": Space()}
    ),
    "device pyo1 lies about": in_h1(devices=frozenset({"pyo1"})),
    "foreign objects were touched": in_h1(foreign=""),
    "/c1 has no record on disk": in_state(endpoints=[]),
    "record of xyz is left over": in_state(
        endpoints=[*right().hosts[0].state["endpoints"], {"id": "xyz", "interfaces": [], "phase": "left"}]
    ),
    "record of gone is left over": in_state(networks=[{"id": NETWORK}, {"id": "gone"}]),
    "the store does not answer": dataclasses.replace(right(), store=None),
    "store: no record of host h1": in_store(lambda s: s.pop("/pyoverlay/v1/nodes/node1")),
    "store: host h1 has VTEP 192.0.2.9": in_store(
        lambda s: s.update({"/pyoverlay/v1/nodes/node1": {"vtep": "192.0.2.9"}})
    ),
    "store: no record of /c1": in_store(lambda s: s.pop(endpoint_of(1))),
    "10.0.0.7 is left over": in_store(lambda s: s.update({endpoint_of(7): s[endpoint_of(1)]})),
    "store: record of /c1 10.0.0.1 on h1 is": in_store(lambda s: s[endpoint_of(1)].update(node="node2")),
}


def test_nothing_is_wrong_with_what_is_right() -> None:
    assert problems(right(), EXPECTED, NOW) == []


@pytest.mark.parametrize("complaint", SPOILT)
def test_a_spoilt_lab_is_told_in_one_sentence(complaint: str) -> None:
    assert [complaint in text for text in problems(SPOILT[complaint], EXPECTED, NOW)] == [True]


def test_the_record_of_an_endpoint_that_ended_unseen_may_stay_for_a_while_and_no_longer() -> None:
    seen = Expected(foreign=EXPECTED.foreign, ended={"xyz": NOW - 1})
    spoilt = SPOILT["record of xyz is left over"]
    assert problems(spoilt, seen, NOW) == []
    assert problems(spoilt, seen, NOW + RESTARTS * FORGOTTEN) != []


def test_rows_of_a_host_that_vanished_may_stay_for_the_grace_and_no_longer() -> None:
    vanished = Expected(foreign=EXPECTED.foreign, vanished={"192.0.2.9": NOW - 1})
    spoilt = in_space(fdb=STALE_FDB)
    assert problems(spoilt, vanished, NOW) == []
    assert problems(spoilt, vanished, NOW + GRACE) != []
