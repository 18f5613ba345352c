"""Two networks joined by two TAP devices: a guest's interface on one side, servers of DHCP on the other.

Run by a test in new user, mount and network namespaces. Exit code 77: something that it needs is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import ipaddress
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adyton.image import dhcp, dhcp_client, guest_kernel, guest_network
from adyton.image.dhcp import Lease
from tests.support.dhcp_server import answer, kind_of, transaction_of

_TUNSETIFF = 0x400454CA
_TAP_WITHOUT_HEADER = 0x1002
_NEW_NETWORK = 0x40000000
SKIPPED = 77


def skip(reason: str) -> None:
    """Say what is missing, and end."""
    print(reason, file=sys.stderr)
    sys.exit(SKIPPED)


def tap(name: str) -> int:
    """A new TAP device in this network: what its interface sends is read here, and the other way round."""
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_WITHOUT_HEADER))
    except OSError as error:
        skip(f"no TAP device can be made here: {error}")
    return descriptor


def carry(source: int, target: int) -> None:
    """Carry frames for ever."""
    with contextlib.suppress(OSError):
        while True:
            os.write(target, os.read(source, 4096))


def udhcpd(guest: int) -> int:
    """Start BusyBox's server in another network, joined to the guest's. Gives its process."""
    busybox = shutil.which("busybox")
    if (
        busybox is None
        or "udhcpd"
        not in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    ):
        skip("busybox has no udhcpd (apt-get install busybox-static)")
    child = os.fork()
    if child:
        return child
    if ctypes.CDLL(None).unshare(_NEW_NETWORK) != 0:
        os._exit(1)
    other = tap("server0")
    subprocess.run(["ip", "address", "add", "10.9.0.1/24", "dev", "server0"], check=True)
    subprocess.run(["ip", "link", "set", "server0", "up"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "udhcpd.conf")
        settings.write_text(
            f"start 10.9.0.50\nend 10.9.0.50\ninterface server0\nlease_file {folder}/leases\npidfile {folder}/pid\n"
            "option subnet 255.255.255.0\noption router 10.9.0.1\noption dns 10.9.0.1\noption mtu 1400\n"
            "option lease 3600\n"
            "option staticroutes 10.9.0.0/24 0.0.0.0, 0.0.0.0/0 10.9.0.1\n"  # the kernel has the first one already
        )
        Path(folder, "leases").touch()
        server = subprocess.Popen([busybox or "", "udhcpd", "-f", str(settings)], stderr=subprocess.DEVNULL)
        threading.Thread(target=carry, args=(guest, other), daemon=True).start()
        threading.Thread(target=carry, args=(other, guest), daemon=True).start()

        def end(_signal: int, _frame: object) -> None:
            server.kill()
            os._exit(0)

        signal.signal(signal.SIGTERM, end)
        server.wait()
    os._exit(1)


def google(guest: int, hardware: bytes) -> None:
    """Answer as Google's network does: a prefix of 32 bits, and routes that say how the gateway is reached."""
    routes = b"\x20\x0a\x84\x00\x01" + bytes(4) + b"\x00\x0a\x84\x00\x01"
    while True:
        frame = os.read(guest, 4096)
        if frame[12:14] != b"\x08\x00" or len(frame) < 14 + 28 + 243:
            continue
        message = frame[14 + 28 :]
        kind = dhcp.OFFER if kind_of(message) == 1 else dhcp.ACK
        raw = answer(
            transaction_of(message),
            kind,
            address=bytes((10, 132, 0, 7)),
            hardware=hardware,
            changes={1: b"\xff" * 4, 3: None, 26: b"\x05\xb4", 54: b"\xa9\xfe\xa9\xfe", 121: routes},
        )
        packet = bytearray(dhcp.build_datagram(raw))
        packet[20:24] = struct.pack("!HH", dhcp.SERVER_PORT, dhcp.CLIENT_PORT)
        os.write(guest, hardware + bytes(6) + b"\x08\x00" + packet)


def routes_of(interface: str) -> list[str]:
    """The kernel's routes of an interface, as /proc says them."""
    found = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        name, target, gateway, *_, mask = line.split()[:8]
        if name == interface:
            raw = [ipaddress.IPv4Address(bytes.fromhex(text)[::-1]) for text in (target, gateway, mask)]
            shown = "-" if int(raw[1]) == 0 else str(raw[1])
            found.append(f"{ipaddress.IPv4Network((raw[0], str(raw[2])))} {shown}")
    return sorted(set(found))


def renewed(lease: Lease, hardware: bytes) -> str:
    """Renew a lease over the real link to its server, now."""
    with dhcp_client.AddressLink("guest0", lease.configuration.address.ip, lease.server) as link:
        link.send(dhcp.renewal(7, hardware, lease))
        raw = link.receive(10)
    found = None if raw is None else dhcp.parse_answer(raw, transaction=7, hardware=hardware, kind=dhcp.ACK)
    return "nothing" if found is None else str(found.configuration.address.ip)


def main() -> None:
    """Print what the kernel has after each step."""
    guest = tap("guest0")
    server = udhcpd(guest)
    hardware = guest_kernel.hardware_address("guest0")
    try:
        guest_kernel.bring_up("guest0")
        with dhcp_client.PacketLink("guest0") as link:
            lease = dhcp_client.obtain(link, hardware, timeout_s=60)
        guest_network.change("guest0", print, lease.configuration)
        found = lease.configuration
        print("by udhcpd", found.address, *found.name_servers, mtu_of("guest0"))
        print("\n".join(routes_of("guest0")))
        print("renewed", renewed(lease, hardware))
        print("ports open afterwards:", len(Path("/proc/net/udp").read_text().splitlines()) - 1)
    finally:
        os.kill(server, signal.SIGTERM)
        os.waitpid(server, 0)
    guest_network.change("guest0", print, None)
    threading.Thread(target=google, args=(guest, hardware), daemon=True).start()
    found = guest_network.by_dhcp("guest0", lambda _text: None)
    print("Google", found.address, mtu_of("guest0"))
    print("\n".join(routes_of("guest0")))
    guest_network.change("guest0", print, None)
    print("lost:", routes_of("guest0"))


def mtu_of(interface: str) -> int:
    """The kernel's MTU of an interface. /sys shows another network here."""
    command = ["ip", "-o", "link", "show", interface]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(shown[shown.index("mtu") + 1])


if __name__ == "__main__":
    main()
