"""Packets on a host's underlay interface, recorded by tcpdump and read without any library."""

from __future__ import annotations

import ipaddress
import signal
import struct
import subprocess
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .spaces import CommandError, wait_for

if TYPE_CHECKING:
    from .host import Host

ETHERNET_IPV4, ETHERNET_IPV6 = 0x0800, 0x86DD
UDP = 17
IPV6_FRAGMENT = 44


@dataclass(frozen=True)
class Packet:
    """One frame as it was on the wire; what it is not (no IP, no UDP) reads as None."""

    time: float
    data: bytes

    @property
    def ethertype(self) -> int:
        return int.from_bytes(self.data[12:14], "big")

    @property
    def version(self) -> int | None:
        return {ETHERNET_IPV4: 4, ETHERNET_IPV6: 6}.get(self.ethertype)

    @property
    def ip_length(self) -> int | None:
        """Length of the IP packet with its header: what an MTU limits."""
        if self.version == 4:
            return int.from_bytes(self.data[16:18], "big")
        return 40 + int.from_bytes(self.data[18:20], "big") if self.version == 6 else None

    @property
    def source(self) -> str | None:
        return self._address(0)

    @property
    def destination(self) -> str | None:
        return self._address(1)

    def _address(self, which: int) -> str | None:
        if self.version == 4:
            return str(ipaddress.ip_address(self.data[26 + 4 * which : 30 + 4 * which]))
        if self.version == 6:
            return str(ipaddress.ip_address(self.data[22 + 16 * which : 38 + 16 * which]))
        return None

    @property
    def fragment(self) -> bool:
        """True for every piece of a fragmented IP packet, the first one too."""
        if self.version == 4:
            return int.from_bytes(self.data[20:22], "big") & 0x3FFF != 0
        return self.version == 6 and self.data[20] == IPV6_FRAGMENT

    @property
    def dont_fragment(self) -> bool:
        return self.version == 4 and bool(self.data[20] & 0x40)

    @property
    def _payload(self) -> tuple[int, int] | None:
        """(protocol, offset) of what the IP packet carries."""
        if self.version == 4:
            return self.data[23], 14 + (self.data[14] & 0x0F) * 4
        return (self.data[20], 54) if self.version == 6 else None

    @cached_property
    def udp(self) -> tuple[int, int, bytes] | None:
        """(source port, destination port, payload)."""
        carried = self._payload
        if carried is None or carried[0] != UDP or len(self.data) < carried[1] + 8:
            return None
        source, destination = struct.unpack_from("!HH", self.data, carried[1])
        return source, destination, self.data[carried[1] + 8 :]

    @property
    def udp_checksum(self) -> int | None:
        carried = self._payload
        return (
            None
            if self.udp is None or carried is None
            else struct.unpack_from("!H", self.data, carried[1] + 6)[0]
        )

    @property
    def vxlan_header(self) -> bytes | None:
        """The eight bytes after the UDP header; in VXLAN (RFC 7348): flags, reserved, VNI, reserved."""
        return self.udp[2][:8] if self.udp is not None and len(self.udp[2]) >= 8 else None

    @property
    def vni(self) -> int | None:
        header = self.vxlan_header
        return int.from_bytes(header[4:7], "big") if header is not None and header[0] & 0x08 else None

    @property
    def inner(self) -> Packet | None:
        """The frame inside a VXLAN packet."""
        return Packet(self.time, self.udp[2][8:]) if self.udp is not None and self.vni is not None else None


class Capture:
    """Records while its `with` block runs; `packets()` works inside the block and after it."""

    def __init__(self, host: Host, expression: str = "", interface: str | None = None) -> None:
        self._host = host
        self._expression = expression
        self._interface = interface or host.interface
        self.file = host.folder / f"capture-{time.monotonic_ns()}.pcap"
        self._process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Capture:
        messages = self.file.with_suffix(".log")
        argv = ["tcpdump", "-n", "-U", "--immediate-mode", "-Z", "root", "-B", "16384", "-s", "0"]
        argv += [
            "-i",
            self._interface,
            "-w",
            str(self.file),
            *([self._expression] if self._expression else []),
        ]
        with open(messages, "w") as log:
            self._process = self._host.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        process = self._process
        listening = wait_for(lambda: "listening on" in messages.read_text() or process.poll() is not None, 10)
        if not listening or process.poll() is not None:
            raise CommandError(self._host.name, argv, "tcpdump does not listen", "", messages.read_text())
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        if self._process is not None:
            # A packet that has just left needs a moment to reach tcpdump.
            time.sleep(0.1)
            self._process.send_signal(signal.SIGINT)
            self._process.wait(10)
            self._process = None

    def packets(self) -> list[Packet]:
        """Everything recorded so far."""
        return read_pcap(self.file)

    def text(self) -> list[str]:
        """The same as tcpdump prints it, one or more lines a packet."""
        argv = ["tcpdump", "-r", str(self.file), "-nn", "-v"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


def read_pcap(file: Path) -> list[Packet]:
    """The packets of a classic pcap file; a last one that is half written is left out."""
    data = file.read_bytes()
    if len(data) < 24:
        return []
    order = "<" if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    found, offset = [], 24
    while offset + 16 <= len(data):
        seconds, fraction, length, _ = struct.unpack_from(f"{order}IIII", data, offset)
        if offset + 16 + length > len(data):
            break
        found.append(Packet(seconds + fraction / 1e6, data[offset + 16 : offset + 16 + length]))
        offset += 16 + length
    return found
