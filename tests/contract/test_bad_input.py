"""Garbage gets a sentence: never HTML, never silence, never an internal error, never half an effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plugin.app import create_app
from plugin.errors import MAX_BODY
from tests.contract.engine import accept, refusal
from tests.contract.samples import METHODS, sample
from tests.contract.services import FakeAddresses, FakeNetworks

APP = create_app(FakeNetworks(), FakeAddresses())

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(["", "<nil>", "10.0.0.1", "10.0.0.0/33", "::1%eth0", "ff:ff:ff:ff:ff:ff", "\0", "0/0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
Path = tuple[str | int, ...]


def paths(value: Any, here: Path = ()) -> Iterator[Path]:
    """Every place in a request, itself included."""
    yield here
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from paths(child, (*here, key))


def replaced(value: Any, path: Path, new: Any) -> Any:
    """*value* with *new* at *path*."""
    if not path:
        return new
    copied = value.copy()
    copied[path[0]] = replaced(value[path[0]], path[1:], new)
    return copied


def post(method: str, body: bytes) -> str | None:
    """Post *body*; return the refusal, or None if the engine would accept the answer."""
    response = APP.test_client().post(f"/{method}", data=body)
    if response.status_code == 200:
        accept(method, json.loads(body), response.status_code, response.data)
        return None
    assert 400 <= response.status_code < 500, response.data
    assert response.status_code != 404
    message = refusal(response.data)
    assert "internal error" not in message
    assert len(message) < 2000
    return message


@given(st.sampled_from(METHODS), st.binary(max_size=200))
@example("NetworkDriver.Join", b"null")
@example("NetworkDriver.Join", b"[]")
@example("NetworkDriver.Join", b'"NetworkID"')
@example("NetworkDriver.Join", b"\xef\xbb\xbf{}")
@example("NetworkDriver.Join", b'{"NetworkID": "\\ud800", "EndpointID": "a"}')
@example("NetworkDriver.Join", b'{"NetworkID": NaN}')
@example("NetworkDriver.DiscoverNew", b'{"DiscoveryType": ' + b"9" * 5000 + b"}")
def test_garbage_is_refused(method: str, body: bytes) -> None:
    """No bytes make a request by chance."""
    message = post(method, body)
    assert message or json.loads(body) is not None


@given(st.data())
def test_a_wrong_type_anywhere_gets_an_answer(data: st.DataObject) -> None:
    """One place of a good request holds anything else."""
    method = data.draw(st.sampled_from(METHODS))
    request = sample(method)
    path = data.draw(st.sampled_from(list(paths(request))))
    changed = replaced(request, path, data.draw(JSON))
    if method.startswith("IpamDriver.Request"):
        # The stand-in is no allocator: whether its answer suits the request is another test's question.
        response = APP.test_client().post(f"/{method}", data=json.dumps(changed))
        assert isinstance(response.json, dict)
    else:
        post(method, json.dumps(changed).encode())


@given(st.data())
def test_a_truncated_request_is_refused(data: st.DataObject) -> None:
    """A prefix of JSON is not JSON."""
    method = data.draw(st.sampled_from(METHODS))
    body = json.dumps(sample(method)).encode()
    assert post(method, body[: data.draw(st.integers(0, len(body) - 1))])


@pytest.mark.parametrize("method", METHODS)
def test_every_field_has_its_type(method: str) -> None:
    """A number is none of: an id, an address, a map, a list, a flag; the refusal names the field."""
    request = sample(method)
    read_nowhere = {"AuxAddresses", "AddressSpace", "BindAddress", "DiscoveryData", "SandboxKey", "Options"}
    for key in request.keys() - (read_nowhere if method.startswith("NetworkDriver") else set()):
        if key == "DiscoveryType":
            continue
        message = post(method, json.dumps({**request, key: 5}).encode())
        assert message
        assert message.startswith(f"{key}: 5 is not valid: "), message


@pytest.mark.parametrize(
    ("method", "field", "value", "expected"),
    [
        (
            "NetworkDriver.CreateNetwork",
            "Options",
            {"com.docker.network.generic": {"vni": 5}},
            "Options.com.docker.network.generic.vni: 5 is not valid: input should be a valid string",
        ),
        (
            "NetworkDriver.CreateNetwork",
            "IPv4Data",
            [{"Pool": "10.0.1.0/33", "Gateway": "10.0.1.1/24"}],
            "IPv4Data.0.Pool: '10.0.1.0/33' is not valid: give a subnet such as 10.0.1.0/24",
        ),
        (
            "NetworkDriver.CreateEndpoint",
            "Interface",
            {"Address": "10.0.1.5"},
            "Interface.Address: '10.0.1.5' is not valid: "
            "give an address with its prefix length such as 10.0.1.5/24",
        ),
        (
            "NetworkDriver.CreateEndpoint",
            "Interface",
            {"MacAddress": "01:00:5e:00:00:01"},
            "MacAddress: '01:00:5e:00:00:01' is not valid: "
            "give a unicast MAC address such as 02:42:0a:00:00:05",
        ),
        (
            "NetworkDriver.Leave",
            "EndpointID",
            None,
            "EndpointID: None is not valid: input should be a valid string",
        ),
    ],
)
def test_the_sentence(method: str, field: str, value: object, expected: str) -> None:
    """Field, value, way out."""
    assert post(method, json.dumps(sample(method, **{field: value})).encode()) == expected


def test_a_missing_id_is_named() -> None:
    assert post("NetworkDriver.Leave", b'{"NetworkID": "a"}') == "EndpointID: it is missing"


def test_many_mistakes_make_one_short_sentence() -> None:
    data = json.dumps(sample("NetworkDriver.CreateNetwork", IPv4Data=["x" * 5000] * 50)).encode()
    message = post("NetworkDriver.CreateNetwork", data)
    assert message
    assert message.endswith("; and 47 more")
    assert len(message) < 700


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_deep_nesting_does_not_exhaust_the_stack(depth: int, brackets: str) -> None:
    """Whether it is understood depends on the depth; that there is an answer does not."""
    opened = "[" * depth if brackets == "[]" else '{"a":' * depth
    closed = ("]" if brackets == "[]" else "}") * depth
    middle = "" if brackets == "[]" else "1"
    body = f'{{"NetworkID": "a", "EndpointID": "b", "Options": {{"x": {opened}{middle}{closed}}}}}'
    response = APP.test_client().post("/NetworkDriver.CreateEndpoint", data=body)
    assert response.status_code in (200, 400)
    assert isinstance(response.json, dict)


def test_a_huge_body_is_refused_unread() -> None:
    body = b'{"NetworkID": "' + b"a" * MAX_BODY + b'"}'
    response = APP.test_client().post("/NetworkDriver.DeleteNetwork", data=body)
    assert response.status_code == 413
    assert str(MAX_BODY) in refusal(response.data)


def test_the_largest_body_is_read() -> None:
    """Hundreds of published ports are fine."""
    options = {"com.docker.network.portmap": [{"Proto": 6, "Port": 80}] * 20_000}
    body = json.dumps(sample("NetworkDriver.CreateEndpoint", Options=options)).encode()
    assert 500_000 < len(body) < MAX_BODY
    assert post("NetworkDriver.CreateEndpoint", body) is None
