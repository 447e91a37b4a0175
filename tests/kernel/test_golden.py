"""What the kernel has when we have set something, as its own tools show it, is what we mean."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing

import pytest

from driver.kernel import netns
from driver.kernel.balancers.sandboxes import NetlinkSandboxes
from driver.kernel.kinds import Balancer
from driver.kernel.objects import index
from driver.kernel.shortcuts.program import assembled
from driver.reconcile.plan import diff
from tests import golden
from tests.kernel.hosts import Host, Space
from tests.kernel.samples import NS, network

pytestmark = pytest.mark.kernel


@pytest.fixture
def namespace() -> Iterator[Space]:
    with closing(Space(netns.create())) as made:
        yield made


@pytest.fixture
def overlay(host: Host) -> Iterator[Space]:
    assert host.kernel.apply(diff(network(), {})) == {}
    with closing(host.overlay(NS)) as opened:
        yield opened


def test_nft_shows_our_table_as_the_golden_file_has_it(namespace: Space) -> None:
    golden.made_by_us(namespace)
    assert golden.table(namespace) == (golden.FILES / "table.json").read_text()


def test_nft_makes_the_same_of_the_table_that_we_mean(namespace: Space) -> None:
    golden.made_by_nft(namespace)
    assert golden.table(namespace) == (golden.FILES / "table.json").read_text()


def test_what_nft_made_is_taken_for_ours(namespace: Space) -> None:
    golden.made_by_nft(namespace)
    with closing(NetlinkSandboxes()) as sandboxes:
        want = index([Balancer(namespace.path, golden.TABLE, golden.SERVICES)])
        assert sandboxes.read_sandbox(namespace.path) == want


def test_tc_shows_our_filter_as_the_golden_file_has_it(overlay: Space) -> None:
    assert golden.shortcut(overlay) == (golden.FILES / "shortcut.json").read_text()


def test_the_program_that_runs_is_the_one_of_the_golden_file(overlay: Space) -> None:
    """The kernel's tag is a hash of the program without its maps' descriptors (SHA-1 before Linux 6.18)."""
    ours = next(one for one in overlay.json("tc -j filter show dev vx0 ingress") if "options" in one)
    program = assembled(0, 0)
    hashes = [how(program).hexdigest()[:16] for how in (hashlib.sha1, hashlib.sha256)]
    assert ours["options"]["prog"]["tag"] in hashes
