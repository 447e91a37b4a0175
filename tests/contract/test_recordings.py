"""What real engines sent, sent again: the engine must like each answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.contract.engine import accept

RECORDINGS = sorted((Path(__file__).parents[1] / "data" / "recordings").glob("*.jsonl"))


def recorded(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as lines:
        yield from (json.loads(line) for line in lines)


def test_there_are_recordings() -> None:
    """A moved folder does not turn the replay into nothing."""
    assert len(RECORDINGS) >= 5


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_the_engine_accepts_every_answer(path: Path, client: FlaskClient) -> None:
    """Each call of the recording, in its order, with the headers that it came with."""
    pool_ids: dict[str, str] = {}
    for call in recorded(path):
        request, headers = call["req"], dict(call["headers"])
        if request and "PoolID" in request:
            # The recorded engine repeats the ids that the recorder gave it; ours are others.
            request["PoolID"] = pool_ids.get(request["PoolID"], request["PoolID"])
        body = b"" if request is None else json.dumps(request).encode() + b"\n"
        headers.pop("Content-Length", None)
        response = client.post(f"/{call['m']}", data=body, headers=headers)
        answer = accept(call["m"], request, response.status_code, response.data)
        if call["m"] == "IpamDriver.RequestPool":
            pool_ids[call["res"]["PoolID"]] = answer["PoolID"]
