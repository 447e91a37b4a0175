"""The managers of the Swarm, as the engine notes them in its own folder.

The file ``state.json`` there tells the engine whom to connect to when it starts: a JSON list of objects with
``node_id`` and ``addr``, on workers and managers alike, written anew when the managers change (swarmkit
node/node.go: persistentRemotes). It is there before the engine's API is, and where the API cannot be reached.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from driver.swarm.docker_api import host_of

_FILE: Final = "state.json"


def known_managers(folder: Path) -> tuple[str, ...]:
    """Return the managers' hosts, addresses as a rule, without ports; none when the file does not tell."""
    try:
        peers = json.loads((folder / _FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return ()
    found = [peer.get("addr") for peer in peers if isinstance(peer, dict)] if isinstance(peers, list) else []
    return tuple(sorted({host_of(address) for address in found if isinstance(address, str) and address}))
