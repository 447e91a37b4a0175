"""What of ours the store should hold, what it does hold, and what must be done about it. Pure.

Nothing here remembers what was *sent*: only what the store said, either in answer to us or
by itself, each as of a revision. So an answer that never came, a store that lost records
and a new store need no special cases.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from driver.cluster.ledger.codec import Scope, Unreadable, claimed_at, owner_of
from driver.cluster.ledger.table import Entry
from driver.wish.values import NodeId


@dataclass(frozen=True, slots=True)
class Put:
    """Write *value*. With *if_absent* only where there is none: restoring a lost record takes
    nothing from a host that has claimed the address since.
    """

    key: str
    value: str
    if_absent: bool = False


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Remove the key if it still has exactly *value*."""

    key: str
    value: str


Claim = Put | Withdraw


class Claims:
    """Records of one node, of one kind."""

    def __init__(self, node: NodeId) -> None:
        self._node = node
        self._wanted: Mapping[str, str] | None = None
        self._held: dict[str, str] = {}
        """Ours in the store, according to its last word."""
        self._yielded: set[str] = set()
        """Wanted, but another host's claim came after ours."""
        self._fresh: set[str] = set()
        """Wanted, and not yet put on this store: these are written over whatever is there."""
        self._former: set[str] = set()
        """Wanted and not yet put on this store either, but claimed when there was another, or by a former
        process: another host may have claimed the same since, and the later claim counts."""
        self._revision: dict[str, int] = {}
        """The revision of the store's last word on a key that is wanted or held."""
        self._todo: dict[str, Claim] = {}

    def set_wanted(self, records: Mapping[str, str]) -> None:
        """Replace what this host says: key to value. Until the first one nothing is withdrawn."""
        old = self._wanted or {}
        new = {k for k, v in records.items() if old.get(k) != v and self._held.get(k) != v}
        former = {k for k in new if claimed_at(k, records[k])} if self._wanted is None else set()
        self._fresh = self._fresh & records.keys() | new - former
        self._former = self._former & records.keys() - new | former
        self._yielded &= records.keys() - self._fresh
        self._wanted = records
        self._todo.clear()
        for key in {**self._held, **records}:
            self._review(key)

    def leftovers(self) -> set[str]:
        """Return the keys that are held and no longer wanted."""
        return self._held.keys() - (self._wanted or {}).keys()

    def is_leftover(self, entry: Entry) -> bool:
        """Tell whether a record, of a part of the store that is not followed, is ours and not wanted."""
        spoken = self._wanted is not None and entry.key not in self._wanted
        return spoken and self._is_ours(entry.key, entry.value or "")

    def pending(self, limit: int) -> list[Claim]:
        """Return the next things to do, at most *limit*."""
        return list(islice(self._todo.values(), limit))

    def settled(self, keys: Collection[str] | None = None) -> bool:
        """Tell whether all that is wanted, or that of *keys*, is held or left to another host."""
        return not self._todo if keys is None else self._todo.keys().isdisjoint(keys)

    def answered(self, claim: Claim, done: bool, revision: int) -> None:
        """Take in the store's answer to *claim*; *done* is false when its condition did not hold."""
        if isinstance(claim, Withdraw):
            self._told(claim.key, None, revision, ours=False)
        elif done:
            self._told(claim.key, claim.value, revision, ours=True)
        elif claim.key not in self._fresh and revision >= self._revision.get(claim.key, 0):
            self._yielded.add(claim.key)
            self._review(claim.key)

    def seen(self, entries: Iterable[Entry]) -> None:
        """Take in what the store reported by itself, about any keys."""
        for entry in entries:
            ours = entry.value is not None and self._is_ours(entry.key, entry.value)
            if ours or self._is_wanted(entry.key) or entry.key in self._held:
                self._told(entry.key, entry.value, entry.revision, ours)

    def load_scope(self, scope: Scope, entries: Collection[Entry], revision: int) -> None:
        """Take in a whole scope as of *revision*: any record of ours that is not there is gone."""
        there = {entry.key for entry in entries}
        ours = {key for key in {*(self._wanted or {}), *self._held} if key.startswith(scope)}
        self.seen(Entry(entry.key, entry.value, revision) for entry in entries)
        self.seen(Entry(key, None, revision) for key in ours - there)

    def restart(self, *, insist: bool = True) -> None:
        """Begin with a new store: what we held we claim again; what we had left to another host we do not.

        Who does not *insist* puts it only where nothing is; who does, also over an earlier claim.
        """
        lost = list(self._held)
        if insist:
            self._former |= self._held.keys() & (self._wanted or {}).keys()
        self._held.clear()
        self._revision.clear()
        for key in lost:
            self._review(key)

    def _is_wanted(self, key: str) -> bool:
        return self._wanted is not None and key in self._wanted

    def _is_ours(self, key: str, value: str) -> bool:
        if self._node not in value and self._node not in key:  # spares reading all other records again
            return False
        try:
            return owner_of(key, value) == self._node
        except Unreadable:
            return False

    def _told(self, key: str, value: str | None, revision: int, ours: bool) -> None:
        """Note that the store has *value* under *key*; an earlier revision is ignored."""
        if revision < self._revision.get(key, 0):
            return
        self._revision[key] = revision
        self._held.pop(key, None)
        if ours and value is not None:
            self._held[key] = value
            self._yielded.discard(key)
            self._former.discard(key)
            if self._wanted is not None and self._wanted.get(key) == value:
                self._fresh.discard(key)
        elif value is None:
            self._yielded.discard(key)
        elif self._is_wanted(key) and key not in self._fresh:
            self._decide(key, value)
        if not self._is_wanted(key) and key not in self._held:
            del self._revision[key]
        self._review(key)

    def _decide(self, key: str, theirs: str) -> None:
        """Yield to another host's claim, or insist on one that is former and not the earlier of the two."""
        ours = (self._wanted or {})[key]
        if key in self._former and claimed_at(key, theirs) <= claimed_at(key, ours):
            self._fresh.add(key)
            self._yielded.discard(key)
        else:
            self._yielded.add(key)
        self._former.discard(key)

    def _review(self, key: str) -> None:
        """Decide what must be done about *key*."""
        claim = self._claim(key)
        if claim is None:
            self._todo.pop(key, None)
        else:
            self._todo[key] = claim

    def _claim(self, key: str) -> Claim | None:
        if self._wanted is None:
            return None
        want, have = self._wanted.get(key), self._held.get(key)
        if want is None:
            return None if have is None else Withdraw(key, have)
        if want == have or key in self._yielded:
            return None
        return Put(key, want, if_absent=have is None and key not in self._fresh)
