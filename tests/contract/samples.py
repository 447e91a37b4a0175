"""One good request for each method with a body, as engines send them."""

from __future__ import annotations

import copy
from typing import Any

NETWORK = "mh6gnsbfiatinqiluv6aterbb"
ENDPOINT = "1190b22f0dca88e806d152ce692e707479adaf839f66ae938923d1e9d8514bf3"

_ENDPOINT_IDS = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
_IPV4 = [
    {"AddressSpace": "LocalDefault", "AuxAddresses": {}, "Gateway": "10.0.1.1/24", "Pool": "10.0.1.0/24"}
]
_PORTS = {
    "com.docker.network.endpoint.exposedports": [{"Proto": 6, "Port": 80}],
    "com.docker.network.portmap": [
        {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}
    ],
}
_WRAPPED = {
    "com.docker.network.enable_ipv4": True,
    "com.docker.network.enable_ipv6": False,
    "com.docker.network.internal": True,
    "com.docker.network.generic": {"vni": "70001"},
}
_NODE = {
    "DiscoveryType": 1,
    "DiscoveryData": {"Address": "10.77.0.1", "BindAddress": "10.77.0.1", "Self": True},
}

_REQUESTS: dict[str, dict[str, Any]] = {
    "NetworkDriver.AllocateNetwork": {
        "NetworkID": NETWORK,
        "Options": {"mtu": "1400"},
        "IPv4Data": [{"AddressSpace": "", "Gateway": "10.0.1.1/24", "Pool": "10.0.1.0/24"}],
        "IPv6Data": None,
    },
    "NetworkDriver.FreeNetwork": {"NetworkID": NETWORK},
    "NetworkDriver.GwAllocCheck": {"Options": _WRAPPED},
    "NetworkDriver.CreateNetwork": {
        "NetworkID": NETWORK,
        "Options": _WRAPPED,
        "IPv4Data": _IPV4,
        "IPv6Data": [],
    },
    "NetworkDriver.DeleteNetwork": {"NetworkID": NETWORK},
    "NetworkDriver.CreateEndpoint": {
        **_ENDPOINT_IDS,
        "Interface": {"Address": "10.0.1.5/24", "AddressIPv6": "", "MacAddress": ""},
        "Options": _PORTS,
    },
    "NetworkDriver.DeleteEndpoint": _ENDPOINT_IDS,
    "NetworkDriver.EndpointOperInfo": _ENDPOINT_IDS,
    "NetworkDriver.Join": {
        **_ENDPOINT_IDS,
        "SandboxKey": "/run/docker/netns/b6fc06bc01c9",
        "Options": _PORTS,
    },
    "NetworkDriver.Leave": _ENDPOINT_IDS,
    "NetworkDriver.ProgramExternalConnectivity": {**_ENDPOINT_IDS, "Options": _PORTS},
    "NetworkDriver.RevokeExternalConnectivity": _ENDPOINT_IDS,
    "NetworkDriver.DiscoverNew": _NODE,
    "NetworkDriver.DiscoverDelete": _NODE,
    "IpamDriver.RequestPool": {
        "AddressSpace": "LocalDefault",
        "Pool": "10.0.1.0/24",
        "SubPool": "",
        "Options": {"a": "b"},
        "V6": False,
    },
    "IpamDriver.ReleasePool": {"PoolID": "10.0.1.0/24"},
    "IpamDriver.RequestAddress": {
        "PoolID": "10.0.1.0/24",
        "Address": "",
        "Options": {"RequestAddressType": "com.docker.network.gateway"},
    },
    "IpamDriver.ReleaseAddress": {"PoolID": "10.0.1.0/24", "Address": "10.0.1.5"},
}

METHODS = tuple(_REQUESTS)
BODILESS = (
    "Plugin.Activate",
    "NetworkDriver.GetCapabilities",
    "IpamDriver.GetCapabilities",
    "IpamDriver.GetDefaultAddressSpaces",
)


def sample(method: str, **changed: Any) -> dict[str, Any]:
    """Return a request of *method* that may be changed, with the fields in *changed* set."""
    return {**copy.deepcopy(_REQUESTS[method]), **changed}
