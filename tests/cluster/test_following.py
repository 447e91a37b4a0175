"""Networks come and go quickly: to follow others is no trouble of the store's."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.cluster.harness import NET, NET2, Host, endpoint


def test_a_changed_mind_about_what_to_follow_is_not_a_lost_store(host: Callable[..., Host]) -> None:
    """The watch is opened anew for a network that is gone again by then."""
    a = host("a")
    a.join(endpoint("a", 1))
    assert a.published()
    a.views.clear()
    for number in range(60):
        a.publish(networks=frozenset({NET, NET2}))
        time.sleep(0.0007 * (number % 5))
        a.publish(networks=frozenset({NET}))
        time.sleep(0.003)
        assert a.published()
    assert all(view.connected for view in a.views)
