"""A laboratory of real Docker engines on one machine: hosts are namespaces, the underlay is a bridge."""

from .capture import Capture, Packet
from .cleanup import clean
from .host import Host
from .image import build_plugin
from .lab import Lab
from .packages import ensure, etcd_binary
from .spaces import CommandError, wait_for

__all__ = [
    "Capture",
    "CommandError",
    "Host",
    "Lab",
    "Packet",
    "build_plugin",
    "clean",
    "ensure",
    "etcd_binary",
    "wait_for",
]
