"""The path to the other hosts: what the kernel says about it, and what applies while it says nothing."""

from __future__ import annotations

import logging

from driver.kernel import Kernel
from driver.reconcile.desired import FALLBACK_UNDERLAY
from driver.wish.errors import KernelError, unforeseen
from driver.wish.model import Underlay
from driver.wish.values import Address

log = logging.getLogger(__name__)


class KnownUnderlay:
    """Remembers the underlay's device, so that an address missing for a moment tears nothing down."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._known: tuple[Address | None, Underlay] | None = None
        self._is_old = True
        self._complaint = ""

    def outdate(self) -> None:
        """Ask the kernel at the next look."""
        self._is_old = True

    def look(self, vtep: Address | None) -> Underlay | KernelError:
        """Return the path to the others; while it is gone, the last answer stays valid."""
        known = self._known if self._known and self._known[0] == vtep else None
        if known is None or self._is_old:
            self._known = known = self._ask(vtep) or known
        if known:
            return known[1]
        if vtep is None:
            return FALLBACK_UNDERLAY
        return KernelError(
            f"VTEP address {vtep} is on no device of this host, and no route leads to other hosts: give the "
            "host a route to them, or set PYOVERLAY_VTEP to one of its addresses"
        )

    def _ask(self, vtep: Address | None) -> tuple[Address | None, Underlay] | None:
        """Ask the kernel; None when it does not know, or when asking fails in any way."""
        self._is_old = False
        try:
            found = self._kernel.underlay(vtep)
        except Exception as error:
            self._complain(f"the device of the VTEP address {vtep} cannot be looked up", error)
            self._is_old = True
            return None
        self._complaint = ""
        _tell(vtep, self._known[1] if self._known and self._known[0] == vtep else None, found)
        return (vtep, found) if found else None

    def _complain(self, what: str, error: Exception) -> None:
        """Log a failure, but not each time that it recurs."""
        complaint = f"{what}: {error}"
        if complaint != self._complaint:
            log.warning(complaint, exc_info=unforeseen(error))
        self._complaint = complaint


def _tell(vtep: Address | None, before: Underlay | None, now: Underlay | None) -> None:
    if now is None:
        if before:
            log.warning(
                "VTEP address %s is on no device of this host at the moment: nothing is changed", vtep
            )
        return
    if now.has_vtep != (before is None or before.has_vtep):
        _tell_binding(vtep, now)
    if before and now.mtu != before.mtu:
        log.warning(
            "the MTU of the underlay (%s) changed from %d to %d: new containers follow. Running ones are "
            "lowered in a Swarm; else the kernel cuts large packets, or rejects them by ICMP, where it can",
            *(now.device, before.mtu, now.mtu),
        )


def _tell_binding(vtep: Address | None, now: Underlay) -> None:
    if now.has_vtep:
        log.info("VTEP address %s is on this host again: tunnels send from it", vtep)
        return
    log.warning(
        "VTEP address %s is on no device of this host: tunnels leave by %s, with the address that the route "
        "gives. That is right where a router translates it to this host (1:1 NAT); else set PYOVERLAY_VTEP "
        "to the address at which other hosts reach this one",
        *(vtep, now.device),
    )
