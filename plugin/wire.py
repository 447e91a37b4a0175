"""What the engine sends and what it accepts, under the engine's own names.

The engine's structs are in moby `daemon/libnetwork/drivers/remote/api/api.go` and
`daemon/libnetwork/ipams/remote/api/api.go`. Keys that are not here (newer engines send more) mean
nothing to us. What the network driver gets is parsed to values here, once; the IPAM's strings are
parsed by `ipam.parse`, whose messages know more about them.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from driver.wish.model import Subnet
from driver.wish.values import Address, Interface, Mac, Prefix
from plugin.fields import (
    AddressField,
    AnyMap,
    EndpointIdField,
    InterfaceField,
    MacField,
    NamedAddressesField,
    NetworkIdField,
    PrefixField,
    StringMap,
    Text,
    null_is,
)


class Message(BaseModel):
    """Base of all that crosses the socket."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, populate_by_name=True)


class Request(Message):
    """Base of what the engine sends."""

    def ids(self) -> str:
        """Return what this request is about, for the log."""
        names = ("NetworkID", "EndpointID", "PoolID", "Address")
        return " ".join(str(value)[:40] for name in names if (value := getattr(self, name, None)))


class Answer(Message):
    """Base of what we answer; by itself the answer of a method with nothing to say."""


# --- Plugin -----------------------------------------------------------------------------------------


class ActivateAnswer(Answer):
    """The interfaces that this plugin serves (moby `pkg/plugins/plugins.go`: Manifest)."""

    Implements: tuple[str, ...] = ("NetworkDriver", "IpamDriver")


# --- NetworkDriver: requests ------------------------------------------------------------------------


class IpamData(Message):
    """One subnet of a network (moby `driverapi/ipamdata.go`)."""

    Pool: PrefixField = None
    Gateway: InterfaceField = None
    AuxAddresses: NamedAddressesField = frozenset()
    """What the user has reserved; in a Swarm the engine keeps it to itself."""


IpamDataList = Annotated[list[IpamData], null_is(list)]


class NetworkOptions(Message):
    """The options of a network as the engine wraps them (moby `libnetwork/netlabel/labels.go`)."""

    generic: StringMap = Field(default_factory=dict, alias="com.docker.network.generic")
    """What the user typed after `-o`; in a Swarm what AllocateNetwork answered."""
    internal: bool = Field(default=False, alias="com.docker.network.internal")


NetworkOptionsField = Annotated[NetworkOptions, null_is(NetworkOptions)]


class NetworkRequest(Request):
    """DeleteNetwork, FreeNetwork, and what every request about a network begins with."""

    NetworkID: NetworkIdField


class _WithSubnets(NetworkRequest):
    IPv4Data: IpamDataList = Field(default_factory=list)
    IPv6Data: IpamDataList = Field(default_factory=list)

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        """All subnets of the network, IPv4 first; a network without IPAM may have none."""
        return tuple(
            Subnet(data.Pool, data.Gateway.ip if data.Gateway else None, data.AuxAddresses)
            for data in (*self.IPv4Data, *self.IPv6Data)
            if data.Pool
        )


class AllocateNetworkRequest(_WithSubnets):
    """A Swarm's leader allocates a network for all nodes. Options are not wrapped here."""

    Options: StringMap = Field(default_factory=dict)


class GwAllocCheckRequest(Request):
    """The engine (28.0+) asks, before any address is allocated, whether a gateway is needed."""

    Options: NetworkOptionsField = Field(default_factory=NetworkOptions)


class CreateNetworkRequest(_WithSubnets):
    """A network comes to this host."""

    Options: NetworkOptionsField = Field(default_factory=NetworkOptions)


class EndpointRequest(NetworkRequest):
    """DeleteEndpoint, EndpointOperInfo, Leave, RevokeExternalConnectivity, and the head of the others."""

    EndpointID: EndpointIdField


class EndpointInterface(Message):
    """The addresses that the IPAM, or the user, chose for an endpoint."""

    Address: InterfaceField = None
    AddressIPv6: InterfaceField = None
    MacAddress: MacField = None

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """The addresses, IPv4 first; none under `--ipam-driver null`."""
        return tuple(address for address in (self.Address, self.AddressIPv6) if address)


class CreateEndpointRequest(EndpointRequest):
    """Create a container's attachment point.

    Options may hold `com.docker.network.endpoint.macaddress` in base64: the same MAC as in Interface,
    which alone counts.
    """

    Interface: Annotated[EndpointInterface, null_is(EndpointInterface)] = Field(
        default_factory=EndpointInterface
    )
    Options: AnyMap = Field(default_factory=dict)


class JoinRequest(EndpointRequest):
    """An endpoint goes into a sandbox, whose namespace need not exist yet (engines before 28.0)."""

    SandboxKey: Text = ""


class DiscoverRequest(Request):
    """The engine reports hosts (type 1); other types carry data of other shapes."""

    DiscoveryType: int
    DiscoveryData: Any = None


class NodeDiscovery(Message):
    """DiscoveryData of type 1 (moby `libnetwork/discoverapi`): the key is "Self", whatever the docs say."""

    Address: AddressField
    Self: bool = False


# --- NetworkDriver: answers -------------------------------------------------------------------------


class NetworkCapabilities(Answer):
    """How far networks of this driver reach: "local" or "global"."""

    Scope: str
    ConnectivityScope: str
    GwAllocChecker: bool = True


class AllocateNetworkAnswer(Answer):
    """The options that replace the user's on every node."""

    Options: dict[str, str]


class GwAllocAnswer(Answer):
    """Whether the engine may leave out the gateway addresses; never: the subnets are routed through them."""

    SkipIPv4: bool = False
    SkipIPv6: bool = False


class CreatedInterface(Message):
    """What the driver adds to an endpoint. The engine takes an echoed address for a modified one."""

    MacAddress: Mac


class CreateEndpointAnswer(Answer):
    """The MAC, if the request had none."""

    Interface: CreatedInterface | None = None


class OperInfoAnswer(Answer):
    """The engine discards this (moby `daemon/network.go`: getEndpointPortMapInfo)."""

    Value: dict[str, str] = Field(default_factory=dict)


class Device(Message):
    """The device for the engine to move, and the prefix of its name inside."""

    SrcName: str
    DstPrefix: str = "eth"


class StaticRoute(Message):
    """A route inside the container: of type 0 through a next hop, of type 1 on the link."""

    Destination: Prefix
    NextHop: Address | None = None
    RouteType: int = 0


class JoinAnswer(Answer):
    """No Gateway, ever: it would take docker_gwbridge, and with it egress and `-p`, from the container."""

    InterfaceName: Device
    StaticRoutes: tuple[StaticRoute, ...] = ()


# --- IpamDriver -------------------------------------------------------------------------------------


class IpamCapabilities(Answer):
    """Whether the engine has to pass MACs, and to repeat its requests after its own restart."""

    RequiresMACAddress: bool = False
    RequiresRequestReplay: bool = False


class AddressSpacesAnswer(Answer):
    """Two different names: the engine skips checks when they are equal."""

    LocalDefaultAddressSpace: str
    GlobalDefaultAddressSpace: str


class RequestPoolRequest(Request):
    """A pool is wanted: Pool itself, or any (also "any /26" as 0.0.0.0/26, engine 29.0+)."""

    AddressSpace: Text = ""
    Pool: Text = ""
    SubPool: Text = ""
    Options: StringMap = Field(default_factory=dict)
    V6: bool = False


class RequestPoolAnswer(Answer):
    """The pool that the caller now has."""

    PoolID: str
    Pool: Prefix
    Data: dict[str, str]


class PoolRequest(Request):
    """ReleasePool, and what every request about a pool begins with."""

    PoolID: str


class RequestAddressRequest(PoolRequest):
    """An address is wanted: Address itself, or any of the pool."""

    Address: Text = ""
    Options: StringMap = Field(default_factory=dict)


class RequestAddressAnswer(Answer):
    """The address, with the prefix length of its pool: it becomes the interface's."""

    Address: Interface
    Data: dict[str, str]


class ReleaseAddressRequest(PoolRequest):
    """An address goes back."""

    Address: Text = ""
