"""Hosts on one Ethernet, and who does not hear whom.

Owns the namespaces, links and addresses. A host stops to reach another one when it believes a hardware
address that nobody has: its frames are lost without a word, in that direction only. The switch has a
namespace of its own as well, so that nothing is left when its holder dies.
"""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Iterable
from contextlib import ExitStack

from tests.integration.faults.space import Space, run

NOBODY = "02:00:00:00:ff:ff"
HERE = 0
"""The number of the test's own host, where clients are."""

_SUBNETS = range(1, 255)
"""Of 198.18.0.0/15, which RFC 2544 sets aside for tests of network devices."""


class Network:
    """Hosts 1 to `count`, each a namespace, and HERE."""

    def __init__(self, stack: ExitStack, count: int) -> None:
        subnet = _free_subnet()
        self._spaces = {number: Space(stack, "net") for number in range(1, count + 1)}
        switch = Space(stack, "net")
        switch.run("ip link add bridge type bridge")
        switch.run("ip link set bridge up")
        self._link = f"rkv{os.getpid()}"
        self._addresses = {number: f"198.18.{subnet}.{number + 1}" for number in range(count + 1)}
        stack.callback(self._unplug)
        for number in range(count + 1):
            self._plug_in(number, switch)
        self.heal()

    @property
    def hosts(self) -> list[int]:
        return sorted(self._spaces)

    def address(self, host: int) -> str:
        return self._addresses[host]

    def prefix(self, host: int) -> list[str]:
        """In front of a command that is to run on that host."""
        return self._spaces[host].prefix if host in self._spaces else []

    def cut(self, source: int, destination: int) -> None:
        """What `source` sends to `destination` is lost from now on."""
        self._believe(source, destination, NOBODY)

    def isolate(self, host: int, *, outgoing: bool = True, incoming: bool = True) -> None:
        """Cuts a host off from all others, HERE included, in one direction or in both."""
        for other in self._addresses.keys() - {host}:
            if outgoing:
                self.cut(host, other)
            if incoming:
                self.cut(other, host)

    def part(self, some: Iterable[int], others: Iterable[int]) -> None:
        """Cuts two groups of hosts off from each other."""
        for one, other in itertools.product(some, others):
            self.cut(one, other)
            self.cut(other, one)

    def heal(self) -> None:
        """Everybody reaches everybody."""
        for source, destination in itertools.permutations(self._addresses, 2):
            self._believe(source, destination, _hardware_address(destination))

    def _plug_in(self, host: int, switch: Space) -> None:
        link = self._device(host)
        port = f"port{host}"
        run(["ip", "link", "add", link, "type", "veth", "peer", "name", port, "netns", str(switch.pid)])
        switch.run(f"ip link set {port} master bridge up")
        if host in self._spaces:
            run(["ip", "link", "set", link, "netns", str(self._spaces[host].pid)])
        self._on(host, "ip", "link", "set", link, "address", _hardware_address(host), "up")
        self._on(host, "ip", "address", "add", f"{self.address(host)}/24", "dev", link)
        if host in self._spaces:
            self._on(host, "ip", "link", "set", "lo", "up")

    def _device(self, host: int) -> str:
        return f"{self._link}h{host}" if host in self._spaces else self._link

    def _believe(self, source: int, destination: int, hardware_address: str) -> None:
        """Permanent, for what is found out by asking would be found out again."""
        entry = [self.address(destination), "lladdr", hardware_address, "nud", "permanent"]
        self._on(source, "ip", "neigh", "replace", *entry, "dev", self._device(source))

    def _on(self, host: int, *command: str) -> None:
        run([*self.prefix(host), *command])

    def _unplug(self) -> None:
        """The other links go with their namespaces; so does this one, but a moment later."""
        if f" {self._link}@" in run(["ip", "-oneline", "link"]):
            run(["ip", "link", "delete", self._link])


def _hardware_address(host: int) -> str:
    """A locally administered one."""
    return f"02:00:00:00:00:{host + 1:02x}"


def _free_subnet() -> int:
    taken = {int(number) for number in re.findall(r"\b198\.18\.(\d+)\.", run(["ip", "-oneline", "address"]))}
    return random.choice([number for number in _SUBNETS if number not in taken])
