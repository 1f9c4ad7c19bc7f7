"""A bad radio link between a gateway and the cloud: 20% of what either end sends is lost, an answer takes 500 ms.

Where it is allowed (root, /dev/net/tun) real packets are lost: the link is a TUN interface, and a thread carries each
packet from one of its addresses to the other, late or never, as `tc netem` would in a kernel that has it; TCP does the
rest. Elsewhere the project's own proxy stalls and breaks the connection as lost packets would.

The trick of the interface: what is sent to `address`.2 comes back to `address`.1 with both addresses exchanged, which
leaves the checksums right, so client and server are both on this machine and need no name space.
"""

import asyncio
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias

from firmware_sim.faults.proxy import FaultProxy

LOSS: Final = 0.2
DELAY_S: Final = 0.25  # each way
LOSSES_MAX: Final = 4  # of one segment, one after the other; then the connection breaks
_IPV4: Final = 4
PACKET_BYTES_MAX: Final = 2048
TUN: Final = Path("/dev/net/tun")
# linux/if_tun.h
_TUNSETIFF: Final = 0x4004_54CA
_IFF_TUN_NO_PI: Final = 0x1001
# RFC 2544 keeps these addresses for tests of network devices.
_NETWORK: Final = "198.18"

Kind: TypeAlias = Literal["packets", "proxy"]


def kind() -> Kind:
    """What a lossy link is made of here."""
    if os.geteuid() != 0:
        return "proxy"
    try:
        os.close(_interface()[0])
    except OSError:
        return "proxy"
    return "packets"


@dataclass
class LossyPackets:
    """A TUN interface that loses packets; `host` is where a client finds a server that listens on `address`."""

    address: str
    host: str
    passed: int = 0
    lost: int = 0


@contextmanager
def lossy_packets(seed: int, *, loss: float = LOSS, delay_s: float = DELAY_S) -> Iterator[LossyPackets]:
    """A link that loses packets in both directions and delays them."""
    device, name = _interface()
    number = int(name.removeprefix("stk"))
    link = LossyPackets(f"{_NETWORK}.{number}.1", f"{_NETWORK}.{number}.2")
    stopping, stop = os.pipe()
    try:
        subprocess.run(["ip", "address", "add", f"{link.address}/24", "dev", name], check=True)
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        carrier = threading.Thread(
            target=_carry,
            name=f"link[{name}]",
            args=(device, stopping, link),
            kwargs={"chance": random.Random(seed), "loss": loss, "delay_s": delay_s},
        )
        carrier.start()
        try:
            yield link
        finally:
            os.write(stop, b"x")
            carrier.join()
    finally:
        for descriptor in (device, stopping, stop):
            os.close(descriptor)


def _interface() -> tuple[int, str]:
    """A new TUN interface; it goes away when its descriptor is closed."""
    device = os.open(TUN, os.O_RDWR)
    try:
        request = struct.pack("16sH22x", b"stk%d", _IFF_TUN_NO_PI)
        answer = fcntl.ioctl(device, _TUNSETIFF, request)
    except OSError:
        os.close(device)
        raise
    return device, answer[:16].rstrip(b"\0").decode()


def _carry(
    device: int, stopping: int, link: LossyPackets, *, chance: random.Random, loss: float, delay_s: float
) -> None:
    """Carry packets until told to stop: each is lost with a probability, or comes out `delay_s` later."""
    under_way: list[tuple[float, int, bytes]] = []
    numbers = itertools.count()
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready = select.select([device, stopping], [], [], wait_s)[0]
        if stopping in ready:
            return
        if device in ready:
            packet = os.read(device, PACKET_BYTES_MAX)
            if chance.random() < loss:
                link.lost += 1
            elif packet[0] >> 4 == _IPV4:  # what IPv6 says about itself is of no use here
                # Bytes 12 to 20 of the header are the source's and the destination's address (RFC 791).
                turned = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
                heapq.heappush(under_way, (time.monotonic() + delay_s, next(numbers), turned))
        while under_way and under_way[0][0] <= time.monotonic():
            with suppress(OSError):  # the interface is being taken down
                os.write(device, heapq.heappop(under_way)[2])
            link.passed += 1


class ProxyThread:
    """The project's fault proxy in a thread with a loop of its own, for tests that are not asynchronous."""

    def __init__(self, port: int) -> None:
        self._target_port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._leave = asyncio.Event()
        self.proxy: FaultProxy

    def __enter__(self) -> Self:
        self._thread.start()
        ready = threading.Event()
        self._ended = asyncio.run_coroutine_threadsafe(self._serve(ready), self._loop)
        assert ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._leave.set)
        self._ended.result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        async with FaultProxy("127.0.0.1", self._target_port) as self.proxy:
            ready.set()
            await self._leave.wait()

    @property
    def url(self) -> str:
        """Where a client finds the proxy."""
        return f"mqtt://127.0.0.1:{self.proxy.port}"

    def cut(self) -> None:
        """Drop all connections and refuse new ones."""
        self._do(self.proxy.cut)

    def blackhole(self) -> None:
        """Swallow everything; both ends believe that the link is there."""
        self._do(self.proxy.blackhole)

    def heal(self) -> None:
        """Let new connections through."""
        self._do(self.proxy.heal)

    def stall(self, seconds: float) -> None:
        """Hold back everything from now on for so long."""
        self.proxy.delay_s = seconds

    def _do(self, act: Callable[[], None]) -> None:
        async def run() -> None:
            act()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(60)


@contextmanager
def lossy_proxy(target: ProxyThread, seed: int, *, delay_s: float = DELAY_S) -> Iterator[None]:
    """What loss looks like from above TCP: stalls that double as its retransmissions do, now and then a broken link."""
    chance, stop = random.Random(seed), threading.Event()

    def disturb() -> None:
        while not stop.wait(chance.uniform(0.2, 1.0)):
            losses = next(n for n in itertools.count() if chance.random() >= LOSS)
            target.stall(delay_s * 2**losses)
            if losses >= LOSSES_MAX:
                target.cut()
                target.heal()

    thread = threading.Thread(target=disturb, name="weather")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        target.stall(0.0)
