"""The recordings against the whole program, on the fake kernel: every call of a real engine succeeds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from driver.cluster.memory import MemoryControlPlane
from driver.cluster.peering import Peering
from driver.mode import Alone, InSwarm, Mode
from driver.overlay import Overlay
from driver.reconcile.networks import NetworkReconciler
from driver.wish.model import Host, Underlay
from driver.wish.state import State
from driver.wish.values import NodeId
from driver.wish.wish import Wish
from ipam.disk import LeaseFile
from ipam.manager import AddressManager
from plugin.app import create_app
from tests.contract.engine import accept, refusal
from tests.contract.test_recordings import RECORDINGS, recorded
from tests.fakes.disk import MemoryDisk
from tests.fakes.kernel import FakeKernel

FOREIGN = ("foo", "rec.vni", "color", "x", "a")
"""Options that the recorder's stub knew and that pyoverlay does not."""


class Program:
    """Everything but the process and the kernel."""

    def __init__(self, folder: Path, mode: Mode) -> None:
        vtep = ip_address("192.0.2.1")
        self._folder, self._mode = folder, mode
        self._disk = MemoryDisk(State(Host(NodeId("node"), vtep)))
        self.kernel = FakeKernel()
        self.kernel.underlays = {
            ip_address(a): Underlay("eth0", 1500) for a in ("192.0.2.1", "10.77.0.1", "10.77.0.2")
        }
        self.start()

    def start(self) -> None:
        self.wish = Wish(self._disk)
        self.reconciler = NetworkReconciler(self.wish, self.kernel)
        self.peering = Peering(self.wish, MemoryControlPlane(NodeId("node")))
        # The recorded hosts' addresses are announced in the recordings; one VTEP serves them all here.
        self.overlay = Overlay(self.wish, self.reconciler, self.peering, self._mode, fixed_vtep=True)
        self.ipam = AddressManager(LeaseFile(self._folder / "ipam.json"), tuple, self.overlay.in_use)
        self.reconciler.start()
        self.peering.start()
        self.client = create_app(self.overlay, self.ipam).test_client()

    def stop(self) -> None:
        self.peering.stop(leave=True)
        self.reconciler.stop()

    def restart(self) -> None:
        self.stop()
        self.start()

    def post(self, method: str, request: Any, headers: dict[str, str]) -> tuple[int, bytes]:
        body = b"" if request is None else json.dumps(request).encode() + b"\n"
        sent = {k: v for k, v in headers.items() if k != "Content-Length"}
        response = self.client.post(f"/{method}", data=body, headers=sent)
        return response.status_code, response.data


@pytest.fixture
def program(tmp_path: Path, path: Path) -> Iterator[Program]:
    program = Program(tmp_path, Alone() if "standalone" in path.stem else InSwarm())
    yield program
    program.stop()


SPACES = {"L": "pyoverlay-local", "G": "pyoverlay-global"}
"""The recorder's address spaces, and ours."""


def as_of_ours(call: Any, pool_ids: dict[str, str]) -> Any:
    """The request as the engine would send it to us: our names, and the recorder's choices as wishes.

    So all later requests fit, which repeat pools and addresses of earlier answers.
    """
    request = without_foreign(call["req"])
    if call["m"] == "IpamDriver.RequestPool":
        request["AddressSpace"] = SPACES[request["AddressSpace"]]
        request["Pool"] = request["Pool"] or call["res"]["Pool"]
        request["V6"] = ":" in request["Pool"]
    if request and "PoolID" in request:
        request["PoolID"] = pool_ids[request["PoolID"]]
    if call["m"] == "IpamDriver.RequestAddress":
        request["Address"] = request["Address"] or call["res"]["Address"].split("/")[0]
    return request


def without_foreign(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_foreign(v) for k, v in value.items() if k not in FOREIGN}
    return value


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_every_call_succeeds_once_foreign_options_are_gone(path: Path, program: Program) -> None:
    pool_ids: dict[str, str] = {}
    for call in recorded(path):
        request = as_of_ours(call, pool_ids)
        answer = accept(call["m"], request, *program.post(call["m"], request, call["headers"]))
        if call["m"] == "IpamDriver.RequestPool":
            pool_ids[call["res"]["PoolID"]] = answer["PoolID"]
    if "standalone" in path.stem:
        assert list(program.kernel.namespaces()) == [], "the recording ends with everything removed"
        assert program.wish.state.networks == {}


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_as_recorded_each_answer_is_a_success_or_a_sentence(path: Path, program: Program) -> None:
    refusals = set()
    for call in recorded(path):
        status, body = program.post(call["m"], call["req"], call["headers"])
        if status == 200:
            accept(call["m"], call["req"], status, body)
        else:
            refusals.add(refusal(body))
    assert all("internal error" not in sentence for sentence in refusals)
    if "standalone" in path.stem:
        assert any("'foo' (value 'bar') is not known" in sentence for sentence in refusals)
