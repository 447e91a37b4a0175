"""What every kind of kernel object has: identity, place, parent, words for it. Pure.

An object is an immutable value: what this host's kernel should hold, or does hold. Its key is its identity,
by what the kernel indexes it; the other fields are its value. Equality is the comparison between wish and
kernel, so a reader of the kernel must produce exactly the value that was set.

The kinds themselves are in `kinds/`, one class each. How a freshly started process knows an object as ours,
from the kernel alone, stands in each class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple, TypeAlias


class Kind(int):
    """A kind of object, by its rank: parents are built before their children, and torn down after them."""

    word: str

    def __new__(cls, rank: int, word: str) -> Kind:
        """Make the kind with this *rank*, called *word* in messages."""
        self = super().__new__(cls, rank)
        self.word = word
        return self

    def __repr__(self) -> str:
        """Say the word."""
        return self.word


class Key(NamedTuple):
    """An object's identity, by what the kernel indexes it. Keys sort parents before children."""

    kind: Kind
    place: str
    """The namespace: of ours by its name, the host's as HOST, a container's by its path."""
    name: str = ""
    """The device, or what else the namespace calls it."""
    rest: str = ""
    """What tells it from others of that name."""


class KernelObject:
    """One object; a subclass is one kind.

    The properties below are what reconciling needs to know of a kind. Their defaults suit an object that
    depends on its parent alone.
    """

    __slots__ = ()

    kind: ClassVar[Kind]
    module: ClassVar[str] = ""
    """The kernel's modules for this kind, as modprobe knows them."""
    is_shared: ClassVar[bool] = False
    """Whether every container of the network needs it: a Join fails without it."""
    goes_with_parent: ClassVar[bool] = False
    """Whether deleting the parent is enough. Devices are deleted one by one: a namespace dies late."""
    is_told: ClassVar[bool] = False
    """Whether other hosts tell us of it: it is kept until they have told all."""

    sound: bool
    """False when settings that the other fields do not name are not as we make them. No wish has that."""

    @property
    def key(self) -> Key:
        """Return its identity."""
        raise NotImplementedError

    @property
    def parent(self) -> Key | None:
        """Return what takes it with it when it goes; None when there is none of ours."""
        return None

    @property
    def needs(self) -> Collection[Key]:
        """Return what it must be set again after, although that does not take it with it."""
        return ()

    @property
    def mark(self) -> str:
        """Return by what it is known when somebody has renamed it; empty when nothing tells."""
        return ""

    @property
    def is_awaited(self) -> bool:
        """Tell whether a call waits for this very object to be made."""
        return False

    @property
    def can_be_made(self) -> bool:
        """Tell whether it can be made when it is not there."""
        return True

    @property
    def leads_nowhere(self) -> bool:
        """Tell whether what it led to has ended: it goes without anybody having meddled."""
        return False

    @property
    def label(self) -> str:
        """Return a short name for log lines."""
        raise NotImplementedError

    @property
    def description(self) -> str:
        """Return what a person would look for, and where."""
        return f"{self.label} in {self.key.place}"

    def differences(self, have: Any) -> Iterator[str]:
        """Yield in words what *have*, the same object in the kernel, has otherwise."""
        for name in _compared(self):
            was = getattr(have, name)
            if name == "sound" and not was:
                yield "was down or had a foreign setting"
            elif was != getattr(self, name):
                yield f"{name} was {was or 'none'}"

    def deviation(self, have: KernelObject | None) -> str:
        """Say in a sentence how *have*, what there was in its place, was not this object."""
        if have is None:
            return f"{self.label} was gone"
        return f"{self.label}: {', '.join(self.differences(have))}"

    def hint(self, number: int) -> str:
        """Return what to do when the kernel refuses it with errno *number*; empty: nothing special."""
        return ""


KernelState: TypeAlias = Mapping[Key, KernelObject]


def index(objects: Iterable[KernelObject]) -> dict[Key, KernelObject]:
    """Key a list of objects."""
    return {obj.key: obj for obj in objects}


def _compared(obj: Any) -> list[str]:
    """Return the names of the fields that make objects equal."""
    if isinstance(obj, tuple):
        return list(obj._fields)  # type: ignore[attr-defined]
    return [one.name for one in fields(obj) if one.compare]
