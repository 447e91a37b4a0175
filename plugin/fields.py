"""Field types of the wire: JSON values become addresses, prefixes and MACs here, and nowhere else.

The engine's encoder is Go's, hence the tolerance: an empty map, slice or pointer may come as null,
an absent address as "".
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, PlainValidator, WrapValidator

from driver.wish.values import Address, Interface, Mac, Prefix, parse_id, parse_mac

_T = TypeVar("_T")


def null_is(empty: Callable[[], object]) -> BeforeValidator:
    """Read JSON's null, which Go's encoder writes for a nil map, slice or pointer, as empty."""
    return BeforeValidator(lambda value: empty() if value is None else value)


def _parsed(parse: Callable[[str], _T], expected: str) -> PlainValidator:
    """Read text with *parse*, which raises ValueError; the sentence about it ends with *expected*."""

    def validate(value: object) -> _T:
        # A zone ("fe80::1%eth0") names an interface of this host; no engine sends one.
        if not isinstance(value, str) or "%" in value:
            raise ValueError(expected)
        try:
            return parse(value)
        except ValueError:
            raise ValueError(expected) from None

    return PlainValidator(validate)


_OPTIONAL = WrapValidator(lambda value, inner: None if value in (None, "") else inner(value))
"""No address is "", or null."""


def _parse_interface(text: str) -> Interface:
    if "/" not in text:
        # Without its prefix length the address would be taken for a network of one host.
        raise ValueError(text)
    return ip_interface(text)


def _parse_prefix(text: str) -> Prefix:
    # Engine 20.10 hands on `--subnet 10.0.1.5/24` as typed: host bits do not matter.
    return ip_network(text, strict=False)


def _named_addresses(value: object) -> frozenset[Address]:
    """Read the addresses of a map; what is none is left out, such as the engine's own "<nil>"."""
    texts = value.values() if isinstance(value, dict) else ()
    found: set[Address] = set()
    for text in texts:
        with suppress(ValueError):
            found.add(_parse_interface(str(text)).ip)
    return frozenset(found)


Text = Annotated[str, null_is(str)]
StringMap = Annotated[dict[str, str], null_is(dict)]
AnyMap = Annotated[dict[str, Any], null_is(dict)]
NetworkIdField = Annotated[str, AfterValidator(partial(parse_id, "NetworkID"))]
EndpointIdField = Annotated[str, AfterValidator(partial(parse_id, "EndpointID"))]
AddressField = Annotated[Address, _parsed(ip_address, "give an address such as 10.0.1.5")]
InterfaceField = Annotated[
    Interface | None,
    _parsed(_parse_interface, "give an address with its prefix length such as 10.0.1.5/24"),
    _OPTIONAL,
]
PrefixField = Annotated[Prefix | None, _parsed(_parse_prefix, "give a subnet such as 10.0.1.0/24"), _OPTIONAL]
NamedAddressesField = Annotated[frozenset[Address], PlainValidator(_named_addresses)]
MacField = Annotated[
    Mac | None, _parsed(partial(parse_mac, "MacAddress"), "give a MAC such as 02:42:0a:00:00:05"), _OPTIONAL
]
