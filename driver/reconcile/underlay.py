"""The way to the other hosts: what the kernel says of it, and what holds while it says nothing."""

from __future__ import annotations

import logging

from driver.kernel import Kernel
from driver.reconcile.desired import FALLBACK_UNDERLAY
from driver.wish.errors import KernelError
from driver.wish.model import Underlay
from driver.wish.values import Address

log = logging.getLogger(__name__)


class KnownUnderlay:
    """Remembers the underlay's device, so that an address that is away for a moment tears nothing down."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._known: tuple[Address | None, Underlay] | None = None
        self._is_old = True

    def outdate(self) -> None:
        """Have the kernel asked at the next look: it had news."""
        self._is_old = True

    def look(self, vtep: Address | None, *, again: bool) -> Underlay | KernelError:
        """Return the way to the others; when it is gone for now, go on with the last answer."""
        known = self._known if self._known and self._known[0] == vtep else None
        if known is None or self._is_old or again:
            self._known = known = self._ask(vtep) or known
        if known:
            return known[1]
        if vtep is None:
            return FALLBACK_UNDERLAY
        return KernelError(
            f"VTEP address {vtep} is on no device of this host: "
            "set PYOVERLAY_VTEP to one of the host's addresses"
        )

    def _ask(self, vtep: Address | None) -> tuple[Address | None, Underlay] | None:
        self._is_old = False
        try:
            found = self._kernel.underlay(vtep)
        except KernelError as error:
            log.warning("underlay of %s: %s", vtep, error)
            self._is_old = True
            return None
        if self._known and self._known[0] == vtep:
            _tell(vtep, self._known[1], found)
        return (vtep, found) if found else None


def _tell(vtep: Address | None, before: Underlay, now: Underlay | None) -> None:
    if now is None:
        log.warning("VTEP address %s is on no device of this host for now: going on as before", vtep)
    elif now.mtu != before.mtu:
        log.warning(
            "the MTU of the underlay (%s) was %d and is %d: new containers follow; those that run keep "
            "theirs, and the kernel fragments their big packets, or answers them by ICMP, where it can",
            *(now.device, before.mtu, now.mtu),
        )
