"""Two instances on one host, on the real kernel: running containers do not notice the second one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from driver.kernel import netns
from driver.kernel.names import container_name, namespace_name
from driver.wish.values import EndpointId, NetworkId
from tests.contract.process import ROOT, children, eventually, head, read
from tests.kernel.hosts import Space

pytestmark = pytest.mark.kernel


class Instance:
    """A real `pyoverlay serve`, in the network namespace of *host*; all of *folder* share one /run."""

    def __init__(self, host: Space, folder: Path, name: str) -> None:
        self.socket = folder / f"{name}.sock"
        self.log = folder / f"{name}.log"
        self.state = folder / name
        settings = {
            "PYOVERLAY_SCOPE": "local",
            "PYOVERLAY_VTEP": "192.0.2.1",
            "PYOVERLAY_RUN_DIR": str(folder / "run"),
            "PYOVERLAY_STATE_DIR": str(self.state),
            "PYOVERLAY_SOCKET": str(self.socket),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["nsenter", f"--net={host.path}", sys.executable, "-m", "plugin.cli", "serve"],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
            )

    def call(self, method: str, **request: object) -> dict[str, object]:
        body = json.dumps(request).encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(self.socket))
            client.sendall(head(method, len(body)) + body)
            status, answer = read(client)
        assert status == 200, answer
        return dict(json.loads(answer))

    def serves(self) -> bool:
        return self.call("NetworkDriver.GetCapabilities")["Scope"] == "local"


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[Space, Path, Callable[[str], Instance]]]:
    """A host with an address, its folder, and a way to start instances."""
    started: list[Instance] = []
    with ExitStack() as stack:
        host = Space(netns.create())
        stack.callback(host.close)
        host.run(
            "ip link add u0 type veth peer name u1 && ip address add 192.0.2.1/24 dev u0 && ip link set u0 up"
        )

        def start(name: str) -> Instance:
            made = Instance(host, tmp_path, name)
            started.append(made)
            return made

        yield host, tmp_path, start
        for made in started:
            made.process.kill()
            made.process.wait()
        for pin in (tmp_path / "run" / "netns").glob("*"):
            netns.unpin(pin)


def test_the_second_instance_is_refused_and_touches_nothing(
    shared: tuple[Space, Path, Callable[[str], Instance]],
) -> None:
    """Not even an idle network; and no socket of its own is there, so that the engine sees it fail."""
    host, folder, start = shared
    first = start("first")
    eventually(first.serves)
    network, endpoint = "a" * 64, "b" * 64
    data = [{"AddressSpace": "", "Pool": "10.9.0.0/24", "Gateway": "10.9.0.1/24", "AuxAddresses": {}}]
    first.call("NetworkDriver.CreateNetwork", NetworkID=network, IPv4Data=data, IPv6Data=[], Options={})
    interface = {"Address": "10.9.0.2/24", "AddressIPv6": "", "MacAddress": ""}
    first.call(
        "NetworkDriver.CreateEndpoint",
        NetworkID=network,
        EndpointID=endpoint,
        Interface=interface,
        Options={},
    )
    first.call("NetworkDriver.Join", NetworkID=network, EndpointID=endpoint, SandboxKey="/x", Options={})
    pin = folder / "run" / "netns" / namespace_name(NetworkId(network))
    before = netns.identity(pin), host.run("ip link"), host.run("nft list ruleset")
    assert container_name(EndpointId(endpoint)) in before[1]
    second = start("second")
    assert second.process.wait(15) == 2
    told = second.log.read_text()
    assert f"process {first.process.pid}, which has served {first.socket} since" in told
    assert "Traceback" not in told
    assert not second.socket.exists()
    assert not second.state.exists()
    assert (netns.identity(pin), host.run("ip link"), host.run("nft list ruleset")) == before
    assert first.serves()


def test_a_killed_worker_is_replaced_and_still_the_owner(
    shared: tuple[Space, Path, Callable[[str], Instance]],
) -> None:
    _, _, start = shared
    first = start("first")
    eventually(first.serves)
    worker = children(first.process.pid)[0]
    os.kill(worker, signal.SIGKILL)
    eventually(first.serves)
    assert children(first.process.pid)[0] != worker
    assert start("second").process.wait(15) == 2
    assert first.serves()


def test_the_lock_dies_with_its_holder(shared: tuple[Space, Path, Callable[[str], Instance]]) -> None:
    """Also when nobody could clean up; the file that is left locks nobody out."""
    _, folder, start = shared
    first = start("first")
    eventually(first.serves)
    first.process.kill()
    second = start("second")
    eventually(second.serves)
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(10) == 0
    assert (folder / "run" / "pyoverlay.lock").exists()
    eventually(start("third").serves)
