"""Traffic between two containers, measured: what was lost, and for how long nothing came.

Two scripts of the machine's Python run in the containers' network namespaces. The sender keeps an
absolute schedule (a late wake-up sends what is due), each datagram bears its number and the time of its
sending, and the receiver takes the kernel's time of arrival. So a busy machine shows up as the sender's
own gap, and never as a loss. Both end when their standard input does, at the latest with the test.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from tests.e2e.containers import Container

RATE = 1000
"""Datagrams a second."""
QUIET_MS = 250.0
"""A stall of a TCP stream that says nothing: one retransmission, or a busy machine of two cores."""
_DRAIN = 0.4
_ports = itertools.count(20_000)

_HASTE = """
import json, os, select, socket, struct, sys, time
try:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
except OSError:
    pass
"""

UDP_SEND = (
    _HASTE
    + """
target, rate = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setblocking(False)  # a datagram that the host cannot send now is lost, and must not hold up the next
number, errors, gap, start = 0, 0, 0.0, time.time()
last = start
print("ready", flush=True)
while not select.select([0], [], [], max(0.0, start + (number + 1) / rate - time.time()))[0]:
    now = time.time()
    gap, last = max(gap, now - last), now
    while number < int((now - start) * rate):
        try:
            s.sendto(struct.pack("!Qd", number, time.time()) + bytes(84), target)
        except OSError:
            errors += 1
        number += 1
print(json.dumps({"sent": number, "errors": errors, "gap": gap, "start": start}))
"""
)

UDP_RECEIVE = (
    _HASTE
    + """
port, drain = int(sys.argv[1]), float(sys.argv[2])
TIMESTAMPNS, RCVBUFFORCE, RXQ_OVFL = 35, 33, 40
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, 32 << 20)
s.setsockopt(socket.SOL_SOCKET, TIMESTAMPNS, 1)
s.setsockopt(socket.SOL_SOCKET, RXQ_OVFL, 1)
s.bind(("", port))
s.setblocking(False)
seen, highest, reordered, repeated, overflow, gap, delay, last = bytearray(), -1, 0, 0, 0, 0.0, 0.0, 0.0
print("ready", flush=True)
end = None
while end is None or time.time() < end:
    readable = select.select([s] if end else [s, 0], [], [], 0.1)[0]
    if 0 in readable:
        end = time.time() + drain
    while s in readable:
        try:
            data, extra, _, _ = s.recvmsg(200, 200)
        except BlockingIOError:
            break
        number, sent = struct.unpack_from("!Qd", data)
        at = time.time()
        for level, kind, value in extra:
            if kind == TIMESTAMPNS:
                seconds, nano = struct.unpack("qq", value)
                at = seconds + nano / 1e9
            elif kind == RXQ_OVFL:
                overflow = struct.unpack("I", value)[0]
        gap = max(gap, at - last) if last else 0.0
        last, delay = at, max(delay, at - sent)
        if number >= len(seen):
            seen.extend(bytes(number + 1000 - len(seen)))
        repeated += seen[number]
        seen[number] = 1
        reordered += number < highest
        highest = max(highest, number)
holes, start = [], None
for number in range(highest + 2):
    if number <= highest and not seen[number]:
        start = number if start is None else start
    elif start is not None:
        holes.append([start, number - start])
        start = None
print(json.dumps({"received": sum(seen), "highest": highest, "reordered": reordered, "repeated": repeated,
                  "overflow": overflow, "gap": gap, "delay": delay, "holes": holes}))
"""
)

TCP_SEND = (
    _HASTE
    + """
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
s.setblocking(False)
print("ready", flush=True)
sent, broken, start, number = 0, "", time.time(), 0
while not select.select([0], [], [], max(0.0, start + (number + 1) / 200 - time.time()))[0]:
    number = int((time.time() - start) * 200)
    try:
        sent += s.send(bytes(1000))
    except BlockingIOError:
        pass
    except OSError as error:
        broken = str(error)
        break
print(json.dumps({"sent": sent, "broken": broken}))
"""
)

TCP_RECEIVE = (
    _HASTE
    + """
listener = socket.create_server(("", int(sys.argv[1])))
print("ready", flush=True)
s, _ = listener.accept()
bytes_, stall, at, last, broken, end = 0, 0.0, 0.0, time.time(), "", None
while end is None or time.time() < end:
    readable = select.select([s] if end else [s, 0], [], [], 0.1)[0]
    now = time.time()
    if now - last > stall:
        stall, at = now - last, last
    if 0 in readable:
        end = now + 2
    if s in readable:
        try:
            data = s.recv(65536)
        except OSError as error:
            broken = str(error)
            break
        if not data:
            break
        bytes_, last = bytes_ + len(data), now
print(json.dumps({"bytes": bytes_, "stall": stall, "at": at, "broken": broken}))
"""
)


@dataclass(frozen=True, slots=True)
class Datagrams:
    """What became of a second's thousand datagrams, many times over."""

    sent: int
    lost: int
    reordered: int
    repeated: int
    gap_ms: float
    """The longest time between two arrivals; the sender's own gaps are in it."""
    own_gap_ms: float
    """The longest time for which the sender itself was not scheduled."""
    delay_ms: float
    holes: tuple[tuple[float, int], ...]
    """Runs of lost datagrams: when the first was sent (seconds of the epoch), how many."""

    @property
    def last_loss(self) -> float:
        """When the last lost datagram was sent; 0 without any."""
        return max((at + count / RATE for at, count in self.holes), default=0.0)

    def __str__(self) -> str:
        return (
            f"{self.sent} sent, {self.lost} lost, {self.reordered} reordered, "
            f"longest gap {self.gap_ms:.0f} ms (the meter's own {self.own_gap_ms:.0f} ms)"
        )


@dataclass(frozen=True, slots=True)
class Stream:
    """What became of one TCP stream."""

    bytes: int
    stall_ms: float
    late: int
    """Bytes that had not come when the meter ended: after a long cut TCP itself pauses as long again."""
    broken: str

    def __str__(self) -> str:
        end = f", {self.late} never came" * bool(self.late) + f", BROKEN: {self.broken}" * bool(self.broken)
        return f"{self.bytes} bytes, longest stall {self.stall_ms:.0f} ms{end}"


class _Meter:
    """A sender in one container and a receiver in another."""

    def __init__(self, receive: subprocess.Popen[str], send: subprocess.Popen[str]) -> None:
        self._receive, self._send = receive, send

    def abandon(self) -> None:
        """End it without an answer."""
        for process in (self._send, self._receive):
            if process.poll() is None:
                process.kill()
            with process:
                pass

    def _end(self) -> tuple[dict[str, Any], dict[str, Any]]:
        sent = _answer(self._send)
        time.sleep(_DRAIN / 2)
        return sent, _answer(self._receive)


class UdpMeter(_Meter):
    """A thousand datagrams a second from one container to an address of another."""

    def __init__(self, source: Container, target: Container, address: str) -> None:
        port = str(next(_ports))
        receive = _start(target, UDP_RECEIVE, port, str(_DRAIN))
        super().__init__(receive, _start(source, UDP_SEND, address, port, str(RATE)))

    def stop(self) -> Datagrams:
        """End it and say what was lost."""
        sent, got = self._end()
        if got["overflow"]:
            raise RuntimeError(f"the receiver was too slow: it lost {got['overflow']} datagrams itself")
        missing = sent["sent"] - got["highest"] - 1
        holes = [*got["holes"], *([[got["highest"] + 1, missing]] if missing > 0 else [])]
        return Datagrams(
            sent=sent["sent"],
            lost=sent["sent"] - got["received"],
            reordered=got["reordered"],
            repeated=got["repeated"],
            gap_ms=got["gap"] * 1000,
            own_gap_ms=sent["gap"] * 1000,
            delay_ms=got["delay"] * 1000,
            holes=tuple((sent["start"] + (first + 1) / RATE, count) for first, count in holes),
        )


class TcpMeter(_Meter):
    """One stream that carries a kilobyte every five milliseconds."""

    def __init__(self, source: Container, target: Container, address: str) -> None:
        port = str(next(_ports))
        receive = _start(target, TCP_RECEIVE, port)
        super().__init__(receive, _start(source, TCP_SEND, address, port))

    def stop(self) -> Stream:
        """End it and say how it went."""
        sent, got = self._end()
        late = sent["sent"] - got["bytes"]
        return Stream(got["bytes"], got["stall"] * 1000, late, sent["broken"] or got["broken"])


def _start(container: Container, script: str, *args: str) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = container.popen(script, *args)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"the meter in {container.name} did not start: {process.wait(10)}")
    return process


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate("\n", timeout=30)
    return dict(json.loads(out))
