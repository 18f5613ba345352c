"""A machine beside a guest on one wire, which knows only frames: it scans every TCP port of the guest.

QEMU sends each Ethernet frame of the guest as a datagram (`-netdev dgram`), so no privilege is needed. Nothing but ARP,
TCP SYN and UDP is spoken, by hand. Source: RFC 826, RFC 791, RFC 793, RFC 768.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

HERE = bytes([10, 0, 2, 2])
GUEST = bytes([10, 0, 2, 15])
OWN_MAC = bytes.fromhex("525500000002")
SOURCE_PORT = 40000
_ARP, _IPV4 = 0x0806, 0x0800
_TCP, _UDP = 6, 17
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
UDP_PORTS = (53, 67, 68, 69, 111, 123, 137, 161, 500, 514, 546, 631, 1194, 1900, 4433, 4500, 5353, 5355, 51820)
"""Services that speak UDP. All ports would take hours: Linux answers one closed UDP port a second."""


def checksum(raw: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    raw += bytes(len(raw) % 2)
    total: int = sum(struct.unpack(f">{len(raw) // 2}H", raw))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ipv4(protocol: int, payload: bytes) -> bytes:
    """A packet from here to the guest."""
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0x4000, 64, protocol, 0) + HERE + GUEST
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def _pseudo(protocol: int, segment: bytes) -> bytes:
    return HERE + GUEST + struct.pack(">BBH", 0, protocol, len(segment)) + segment


def tcp(port: int, flags: int, sequence: int = 7) -> bytes:
    """A segment without data."""
    raw = struct.pack(">HHIIBBHHH", SOURCE_PORT, port, sequence, 0, 0x50, flags, 1024, 0, 0)
    return ipv4(_TCP, raw[:16] + struct.pack(">H", checksum(_pseudo(_TCP, raw))) + raw[18:])


def udp(port: int, content: bytes = b"hello there\n") -> bytes:
    """A datagram."""
    raw = struct.pack(">HHHH", SOURCE_PORT, port, 8 + len(content), 0) + content
    return ipv4(_UDP, raw[:6] + struct.pack(">H", checksum(_pseudo(_UDP, raw))) + raw[8:])


@dataclass
class Scan:
    """What a scan found."""

    open: set[int] = field(default_factory=set)
    closed: set[int] = field(default_factory=set)
    udp: set[int] = field(default_factory=set)
    """UDP ports that answered with a datagram."""


class Wire:
    """The other end of the guest's network device. `netdev` is the option for QEMU."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._here, self._there = folder / "host.sock", folder / "guest.sock"
        self._socket.bind(str(self._here))
        self._guest_mac: bytes | None = None
        self.netdev = f"dgram,id=net,local.type=unix,local.path={self._there},remote.type=unix,remote.path={self._here}"

    def close(self) -> None:
        """Pull the plug."""
        self._socket.close()

    def _send(self, kind: int, payload: bytes, to: bytes | None = None) -> None:
        frame = (to or self._guest_mac or b"\xff" * 6) + OWN_MAC + struct.pack(">H", kind) + payload
        self._socket.settimeout(1.0)
        try:
            self._socket.sendto(frame.ljust(60, b"\0"), str(self._there))
        except (TimeoutError, FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.1)  # the machine is not there yet, or takes no frames: this one is lost

    def _arp(self, operation: int, guest_mac: bytes) -> bytes:
        return struct.pack(">HHBBH", 1, _IPV4, 6, 4, operation) + OWN_MAC + HERE + guest_mac + GUEST

    def _receive(self, scan: Scan, wait_s: float) -> bool:
        """Take one frame. False where none came in time."""
        self._socket.settimeout(wait_s)
        try:
            frame = self._socket.recv(65536)
        except (TimeoutError, BlockingIOError):
            return False
        kind, payload = int.from_bytes(frame[12:14], "big"), frame[14:]
        if kind == _ARP and payload[14:18] == GUEST:
            self._guest_mac = frame[6:12]
            if payload[24:28] == HERE and payload[7] == 1:
                self._send(_ARP, self._arp(2, self._guest_mac))
        elif kind == _IPV4 and payload[12:16] == GUEST and payload[16:20] == HERE:
            at = (payload[0] & 15) * 4
            port, to, flags = *struct.unpack(">HH", payload[at : at + 4]), payload[at + 13]
            if to != SOURCE_PORT:
                pass
            elif payload[9] == _UDP:
                scan.udp.add(port)
            elif payload[9] == _TCP and flags & _RST:
                scan.closed.add(port)
            elif payload[9] == _TCP and flags & (_SYN | _ACK) == _SYN | _ACK:
                scan.open.add(port)
                self._send(_IPV4, tcp(port, _RST, 8))
        return True

    def scan(self, ports: Iterable[int], *, most_s: float, udp_ports: Iterable[int] = ()) -> Scan:
        """Ask each port until it answered, for at most so many seconds. A port in neither set did not answer."""
        found, wanted, ends_s = Scan(), set(ports), time.monotonic() + most_s
        if self._guest_mac is None:
            self._send(_ARP, self._arp(1, bytes(6)), b"\xff" * 6)
            self._receive(found, 1.0)
        for port in udp_ports:
            self._send(_IPV4, udp(port))
        while (left := sorted(wanted - found.open - found.closed)) and time.monotonic() < ends_s:
            for at in range(0, len(left), 64):  # as many as a guest's queue takes
                for port in left[at : at + 64]:
                    self._send(_IPV4, tcp(port, _SYN))
                while self._receive(found, 0.02):
                    pass
        while self._receive(found, 1.0):
            pass
        return found
