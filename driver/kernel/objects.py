"""What every kind of kernel object has: identity, place, parent, a description. Pure.

An object is an immutable value: what this host's kernel should hold, or does hold. Its key is its identity,
by what the kernel indexes it; the other fields are its value. Equality is the comparison between wish and
kernel, so a reader of the kernel must produce exactly the value that was set.

The kinds themselves are in `kinds/`, one class each. How a freshly started process recognises an object as
ours, from the kernel alone, is explained in each class.
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
    """The device, or another name within the namespace."""
    rest: str = ""
    """What distinguishes it from others of that name."""


class KernelObject:
    """One object; a subclass is one kind.

    The properties below are what reconciling needs to know about a kind. Their defaults suit an object that
    depends only on its parent.
    """

    __slots__ = ()

    kind: ClassVar[Kind]
    module: ClassVar[str] = ""
    """The kernel's modules for this kind, as modprobe knows them."""
    is_shared: ClassVar[bool] = False
    """Whether every container of the network needs it: a Join fails without it."""
    goes_with_parent: ClassVar[bool] = False
    """Whether deleting the parent is enough. Devices are deleted one by one: a namespace goes late."""
    is_told: ClassVar[bool] = False
    """Whether we know of it from other hosts: it is kept until they have reported everything."""

    sound: bool
    """False when settings that the other fields do not name are not as we make them. Never wished for."""

    @property
    def key(self) -> Key:
        """Return its identity."""
        raise NotImplementedError

    @property
    def parent(self) -> Key | None:
        """Return the object of ours whose removal removes it as well; None when there is none."""
        return None

    @property
    def needs(self) -> Collection[Key]:
        """Return the objects after which it must be set again, although it survives their removal."""
        return ()

    @property
    def mark(self) -> str:
        """Return how to recognise it when somebody has renamed it; empty when that is impossible."""
        return ""

    @property
    def is_awaited(self) -> bool:
        """Tell whether a call is waiting for this very object."""
        return False

    @property
    def can_be_made(self) -> bool:
        """Tell whether it can be created when it does not exist."""
        return True

    @property
    def leads_nowhere(self) -> bool:
        """Tell whether what it led to has ended: then it vanishes without anybody's interference."""
        return False

    @property
    def label(self) -> str:
        """Return a short name for log lines."""
        raise NotImplementedError

    @property
    def description(self) -> str:
        """Return what one would look for, and where."""
        return f"{self.label} in {self.key.place}"

    def differences(self, have: Any) -> Iterator[str]:
        """Yield in words how *have*, the same object in the kernel, differs."""
        for name in _compared(self):
            was = getattr(have, name)
            if name == "sound" and not was:
                yield "was down or had a foreign setting"
            elif was != getattr(self, name):
                yield f"{name} was {was or 'none'}"

    def deviation(self, have: KernelObject | None) -> str:
        """Say in a sentence how *have*, found in its place, was not this object."""
        if have is None:
            return f"{self.label} was gone"
        return f"{self.label}: {', '.join(self.differences(have))}"

    def hint(self, number: int) -> str:
        """Return what to do when the kernel refuses it with errno *number*; or nothing."""
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
