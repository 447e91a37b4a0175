"""What our kernel objects are called, so that people and a new process recognise them. Pure."""

from __future__ import annotations

from driver.wish.values import HOST, EndpointId, NetworkId, Scope, Vni

NAMESPACE_PREFIX = "pyoverlay-"
ALIAS_PREFIX = "pyoverlay "
CONTAINER_PREFIX = "pyo"
ALIAS_MAX = 255
"""Bytes that the kernel keeps of an alias (linux/if.h: IFALIASZ, less its closing zero)."""


def namespace_name(network: NetworkId) -> str:
    """Name a network's namespace; twelve characters are what ``docker network ls`` shows."""
    return f"{NAMESPACE_PREFIX}{network[:12]}"


def place_of(scope: Scope) -> str:
    """Return where the kernel objects of *scope* are: in the host's own namespace, or in the network's."""
    return scope if scope is HOST else namespace_name(scope)


def bridge_name(vni: Vni) -> str:
    """Name the bridge of a segment."""
    return f"br{vni}"


def vxlan_name(vni: Vni) -> str:
    """Name the VXLAN device of a segment."""
    return f"vx{vni}"


def port_name(endpoint: EndpointId) -> str:
    """Name the bridge end of an endpoint's veth pair."""
    return f"port{endpoint[:11]}"


def container_name(endpoint: EndpointId) -> str:
    """Name the container end of an endpoint's veth pair while it is in the host's namespace."""
    return f"{CONTAINER_PREFIX}{endpoint[:12]}"


def port_of(container_end: str) -> str:
    """Name the bridge end whose other end is *container_end*, in the host's namespace."""
    return port_name(EndpointId(container_end.removeprefix(CONTAINER_PREFIX)))
