"""What this machine lets us do to it, beyond what every machine does. Each function says why not; None: it does."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final

from tests.faults.pooler import PROGRAM as POOLER

# The filter takes so many ports in a rule.
MOST_PORTS: Final = 15
ESTABLISHED: Final = "01"
FAKE_CLOCKS: Final = ("/usr/lib", "/usr/lib64", "/usr/local/lib")


def no_pooler() -> str | None:
    """Whether PgBouncer is missing."""
    return None if POOLER else "no pgbouncer is installed"


@cache
def fake_clock() -> str | None:
    """Return the library that gives a process another clock, in all its threads."""
    found = [path for place in FAKE_CLOCKS for path in sorted(Path(place).glob("**/faketime/libfaketimeMT.so.1"))]
    return str(found[0]) if found else None


def no_fake_clock() -> str | None:
    """Whether clocks of single processes cannot be set."""
    return None if fake_clock() else "no faketime is installed"


@cache
def no_packet_filter() -> str | None:
    """Whether packets cannot be dropped here."""
    if os.geteuid() != 0 or not shutil.which("iptables"):
        return "iptables needs root, and to be installed"
    tried = subprocess.run(["iptables", "-w", "-S", "INPUT"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"iptables: {tried.stderr.strip()}"


@contextmanager
def dropping(port: int) -> Generator[None]:
    """Drop every packet to and from this port of the loopback while the block lasts, and tell nobody."""
    with _in_force([["--dport", str(port)], ["--sport", str(port)]]):
        yield


@contextmanager
def losing(ports: Sequence[int], *, one_in: int = 1) -> Generator[None]:
    """Drop the packets of these ports of the loopback, all or one in so many, while the block lasts."""
    chance = [] if one_in == 1 else ["-m", "statistic", "--mode", "random", "--probability", f"{1 / one_in:.4f}"]
    with _in_force(
        [["-m", "multiport", "--ports", ",".join(map(str, some)), *chance] for some in _batched(ports, MOST_PORTS)]
    ):
        yield


@contextmanager
def _in_force(rules: Sequence[Sequence[str]]) -> Generator[None]:
    """Drop the packets of TCP on the loopback that one of these rules matches."""
    made: list[list[str]] = []
    try:
        for rule in rules:
            whole = ["INPUT", "-i", "lo", "-p", "tcp", *rule, "-j", "DROP"]
            subprocess.run(["iptables", "-w", "-I", *whole], check=True, capture_output=True)
            made.append(whole)
        yield
    finally:
        for whole in made:
            subprocess.run(["iptables", "-w", "-D", *whole], check=True, capture_output=True)


def _batched(ports: Sequence[int], most: int) -> list[Sequence[int]]:
    """Cut into pieces of so many at most."""
    return [ports[start : start + most] for start in range(0, len(ports), most)]


def callers(port: int) -> set[int]:
    """Return the ports of this machine from which connections to `port` stand, as those who called see it."""
    found: set[int] = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if state == ESTABLISHED and int(remote.rpartition(":")[2], 16) == port:
            found.add(int(local.rpartition(":")[2], 16))
    return found


@cache
def no_small_disk() -> str | None:
    """Whether no file system of a size of ours can be mounted here."""
    if os.geteuid() != 0:
        return "mounting needs root"
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if tried.returncode != 0:
            return tried.stderr.strip()
        subprocess.run(["umount", folder], check=True)
    return None


class SmallDisk:
    """A file system in memory of so many megabytes in the place of a folder, with what was in the folder."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"
        owner = folder.stat()
        aside = folder.with_name(f"{folder.name}.aside")
        folder.rename(aside)
        folder.mkdir(mode=0o700)
        options = f"size={megabytes}m,mode=700,uid={owner.st_uid},gid={owner.st_gid}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
        subprocess.run(["cp", "-a", f"{aside}/.", str(folder)], check=True)
        shutil.rmtree(aside)

    def fill(self) -> None:
        """Leave nothing free."""
        # In bites, since one that does not fit is given back whole: others take from the same disk, and give back.
        with self._ballast.open("ab") as file:
            for bite in (1 << 22, 1 << 16, 4096):
                with suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, bite)

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmount it, with all there is."""
        subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)
