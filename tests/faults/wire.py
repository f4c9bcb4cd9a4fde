"""A wire of its own into a network namespace, on which packets are late and lost for real (as root)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from itertools import count
from typing import Final

DELAY: Final = ("200ms", "40ms")
LOSS_PERCENT: Final = 5
_numbers: Final = count()


def no_wire() -> str | None:
    """Why there can be none on this machine; None: there can."""
    if os.geteuid() != 0 or not all(shutil.which(program) for program in ("ip", "tc", "iptables")):
        return "network namespaces need root, ip, tc and iptables"
    return _tried()


@cache
def _tried() -> str | None:
    try:
        Wire().remove()
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    return None


class Wire:
    """Two ends: `host` is the address on this side, `prefix` is put before a command to run it on the other.

    Packets get lost both ways, by `tc netem` where the kernel has it, which has them late as well (`has_delay`), else
    by the packet filter.
    """

    def __init__(self) -> None:
        # Not where another process of these tests has its own.
        number = (os.getpid() * 4 + next(_numbers) % 4) % 16_384
        self._name = f"qpg-{number}"
        first = number * 4
        self.host, self._peer = (f"10.231.{(first + k) >> 8}.{(first + k) & 255}" for k in (1, 2))
        self.prefix = ("ip", "netns", "exec", self._name)
        self.has_delay = True
        _run("ip", "netns", "add", self._name)
        try:
            self._connect()
        except subprocess.CalledProcessError:
            self.remove()
            raise

    def _connect(self) -> None:
        here, there = f"{self._name}h", f"{self._name}n"
        _run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", self._name)
        _run("ip", "address", "add", f"{self.host}/30", "dev", here)
        _run("ip", "link", "set", here, "up")
        _run(*self.prefix, "ip", "address", "add", f"{self._peer}/30", "dev", there)
        for device in (there, "lo"):
            _run(*self.prefix, "ip", "link", "set", device, "up")
        netem = ("root", "netem", "delay", *DELAY, "loss", f"{LOSS_PERCENT}%")
        try:
            _run("tc", "qdisc", "add", "dev", here, *netem)
            _run(*self.prefix, "tc", "qdisc", "add", "dev", there, *netem)
        except subprocess.CalledProcessError:
            # A kernel without it.
            self.has_delay = False
            for chain in ("INPUT", "OUTPUT"):
                chance = ("-m", "statistic", "--mode", "random", "--probability", str(LOSS_PERCENT / 100))
                _run(
                    *self.prefix,
                    "iptables",
                    "-A",
                    chain,
                    "!",
                    "-o" if chain == "OUTPUT" else "-i",
                    "lo",
                    *chance,
                    "-j",
                    "DROP",
                )

    def lost(self) -> int:
        """Return how many packets have been lost."""
        if self.has_delay:
            said = _run("tc", "-s", "qdisc", "show", "dev", f"{self._name}h")
            said += _run(*self.prefix, "tc", "-s", "qdisc", "show", "dev", f"{self._name}n")
            return sum(int(found) for found in re.findall(r"dropped (\d+)", said))
        said = _run(*self.prefix, "iptables", "-nvxL")
        return sum(int(found) for found in re.findall(r"^\s*(\d+)\s+\d+\s+DROP", said, re.MULTILINE))

    def remove(self) -> None:
        """Take it away with both its ends."""
        subprocess.run(["ip", "link", "del", f"{self._name}h"], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self._name], check=False, capture_output=True)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
