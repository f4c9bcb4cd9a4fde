"""The keeper of one command: `python -I -S -X utf8 keeper.py <fd of the control socket>`.

It starts the command, and when that has to end it ends the whole process tree, whatever the processes in it have done
to get away (`setsid`, double forks): as their subreaper it inherits all whose parents have died. It has to end when
the command itself ends, when the worker says so, and when the worker dies: the socket closes then, and so does the
worker's pidfd, should somebody else hold a copy of the socket.

Over the socket comes first what to run, a length and a marshalled dict (the same interpreter runs at both ends), and
then at most orders to stop, a line `stop <seconds of grace>` each. Back goes one line when nothing is left of the tree:
`exit <code>`, `signal <number>` or `error <errno> <what could not be done>`.

One keeper is started per command, so it imports only what it needs, and nothing of queue-pg.
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress

# No module of what is only said to type checkers: starting has to be quick.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

LINUX = sys.platform == "linux"
CLEANUP_SECONDS = 10.0
# Between two looks at processes that were told to end.
LONGEST_PAUSE_SECONDS = 0.02
# What the kernel knows of this process without looking at all others; so often at a time.
CHILDREN = "/proc/thread-self/children"
SWOOPS = 50
# Without pidfds the worker's death shows in our parent's id only.
PARENT_CHECK_SECONDS = 0.25
# Given to the command, so that the kernel kills it before the worker when memory runs out.
OOM_SCORE = b"500"

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38


def main() -> None:
    # Orders come over the socket. Somebody who ends a whole group or service means the worker, who decides.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _wake)
    control = int(sys.argv[1])
    os.set_inheritable(control, False)
    spec: dict[str, Any] = marshal.loads(_read(control, int.from_bytes(_read(control, 8))))  # noqa: S302 - our worker's
    keeper = Keeper(control, spec)
    answer = keeper.run()
    with suppress(OSError):
        os.write(control, answer.encode() + b"\n")
    os._exit(0)


class Keeper:
    """Runs one command to its end."""

    def __init__(self, control: int, spec: dict[str, Any]) -> None:
        self.control = control
        self.spec = spec
        self.me, self.worker = os.getpid(), os.getppid()
        self.pid = 0
        self.status: int | None = None
        self.failure = b""
        self.stopped = False
        self.deadline: float | None = None
        self.prctl = _prctl()

    def run(self) -> str:
        """Return how the command ended, when nothing is left of it."""
        if self.prctl is not None:
            self.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        wake, waker = os.pipe()
        os.set_blocking(waker, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, _wake)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        failing = self._start()
        if self.prctl is not None:
            # Not before the fork: the command's own entries in /proc would be root's until it is executed.
            self.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        self._watch(failing, wake)
        self._kill_all()
        # Who was killed has not cleaned up either.
        if self.stopped or (self.status is not None and os.WIFSIGNALED(self.status)):
            for argv in self.spec["cleanup"]:
                self._clean_up(argv)
        if self.failure:
            return f"error {self.failure.decode()}"
        assert self.status is not None  # noqa: S101 - all children were waited for
        code = os.waitstatus_to_exitcode(self.status)
        return f"exit {code}" if code >= 0 else f"signal {-code}"

    # --- starting -----------------------------------------------------------------------------------------------------

    def _start(self) -> int:
        """Fork the command; return a descriptor that tells why it could not be executed, and closes when it was."""
        failing, fail = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            stage = "start"
            try:
                for name, step in self._steps():
                    stage = name
                    step()
                stage = "execute"
                _execute(self.spec["argv"], self.spec["env"])
            except BaseException as error:
                number = getattr(error, "errno", None) or errno.EINVAL
                os.write(fail, f"{number} {stage}".encode())
            finally:
                os._exit(127)
        os.close(fail)
        # The command's input and output shall close when the command has ended.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
        return failing

    def _steps(self) -> list[tuple[str, Any]]:
        """Return what the child does before it executes the command."""
        spec = self.spec

        def user() -> None:
            if spec["user"] is not None:
                os.setgroups([])
                os.setgid(spec["user"][1])
                os.setuid(spec["user"][0])

        def limits() -> None:
            for name, wanted in spec["limits"].items():
                number = getattr(resource, name, None)
                if number is None:
                    continue
                hard = resource.getrlimit(number)[1]
                soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
                # SIGXCPU at the soft limit says what happened; who catches it is killed a little later.
                above = soft + 2 if name == "RLIMIT_CPU" else soft
                resource.setrlimit(number, (soft, above if hard == resource.RLIM_INFINITY else min(above, hard)))

        def bind() -> None:
            # After the change of user, which clears it.
            if self.prctl is not None:
                self.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                self.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != self.me:
                os._exit(127)

        return [
            ("start a session for", os.setsid),
            ("reset the signals of", _reset_signals),
            ("expose to the kernel", _prefer_to_be_killed),
            ("enter the workspace of", lambda: os.chdir(spec["cwd"])),
            ("set the umask of", lambda: os.umask(0o077)),
            ("change the user of", user),
            ("limit", limits),
            ("bind", bind),
        ]

    # --- watching -----------------------------------------------------------------------------------------------------

    def _watch(self, failing: int, wake: int) -> None:
        """Return when the command has ended by itself, or all is to be killed."""
        poll = select.poll()
        for descriptor in (self.control, failing, wake):
            poll.register(descriptor, select.POLLIN)
        parent = _pidfd(self.worker)
        if parent is not None:
            poll.register(parent, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll(self._patience(parent)):
                if descriptor == wake:
                    with suppress(BlockingIOError):
                        os.read(wake, 4096)
                elif descriptor == failing:
                    self.failure += (told := os.read(failing, 200))
                    if not told:
                        poll.unregister(failing)
                elif descriptor == parent or not self._ordered():
                    self.stopped = True
                    return
            if os.getppid() != self.worker:
                self.stopped = True
                return
            childless = self._reap()
            # What the command has left running ends with it; after an order to stop it has the rest of the grace too.
            if self.status is not None and (childless or not self.stopped):
                self.failure += _rest(failing)
                return
            if self.deadline is not None and time.monotonic() >= self.deadline:
                return

    def _patience(self, parent: int | None) -> float | None:
        """Return after how many milliseconds to look without having been woken."""
        seconds = None if parent is not None else PARENT_CHECK_SECONDS
        if self.deadline is not None:
            left = max(self.deadline - time.monotonic(), 0)
            seconds = left if seconds is None else min(left, seconds)
        return None if seconds is None else seconds * 1000 + 1

    def _ordered(self) -> bool:
        """Obey the worker; return False when it is gone."""
        try:
            order = os.read(self.control, 4096)
        except OSError:
            return False
        for line in order.splitlines():
            grace = float(line.split()[1])
            self.stopped = True
            self.deadline = min(self.deadline or float("inf"), time.monotonic() + grace)
            self._signal_all(signal.SIGTERM)
        return bool(order)

    # --- ending -------------------------------------------------------------------------------------------------------

    def _kill_all(self) -> None:
        """Return when nothing is left of the tree.

        Who has no children any more has no descendants: those whose parents have died became children of ours. So
        nothing is missed, although the list of processes changes while it is read.

        A process that forks and ends again and again is another one each time all processes have been looked at, which
        takes long on a machine with many. So our own children, whom the kernel lists at once, are killed first. Many
        that fork faster than they are killed are stopped first: they keep their places below the limit of processes.
        """
        pause = 0.0005
        while not self._reap():
            for _ in range(SWOOPS):
                if not self._kill_children() or self._reap():
                    break
            self._signal_all(signal.SIGSTOP)
            self._signal_all(signal.SIGKILL)
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _kill_children(self) -> bool:
        """Kill our own children; return whether there were any. We alone wait for them: their numbers are theirs."""
        try:
            list_of_them = os.open(CHILDREN, os.O_RDONLY)
        except OSError:
            return False  # not Linux, or one without it
        try:
            listed = os.read(list_of_them, 65536)
        finally:
            os.close(list_of_them)
        # A number that was cut off at the end would be somebody else's.
        for pid in listed[: listed.rfind(b" ") + 1].split():
            with suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)
        return bool(listed)

    def _reap(self) -> bool:
        """Wait for all that has ended; return whether nothing is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return LINUX or not self._group_lives()
            if not pid:
                return False
            if pid == self.pid:
                self.status = status

    def _signal_all(self, number: int) -> None:
        if not LINUX:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
            return
        for pid, born in _descendants(self.me):
            with suppress(OSError):
                process = os.pidfd_open(pid)
                try:
                    # The same process still, and not another one that got its number.
                    if (now := _stat(pid)) is not None and now[2] == born:
                        signal.pidfd_send_signal(process, number)
                finally:
                    os.close(process)

    def _group_lives(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _clean_up(self, argv: list[bytes]) -> None:
        """Run a program that removes what is no process of ours, such as a container; a bounded time."""
        pid = os.fork()
        if not pid:
            try:
                _reset_signals()
                _execute(argv, self.spec["env"])
            finally:
                os._exit(127)
        deadline = time.monotonic() + CLEANUP_SECONDS
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(0.005)


def _wake(_number: int, _frame: FrameType | None) -> None:
    """Do nothing but end a wait."""


def _execute(argv: list[bytes], env: dict[bytes, bytes]) -> None:
    """Replace this process; a program without a slash is looked for on the PATH of its environment."""
    program = argv[0]
    if b"/" in program:
        os.execve(program, argv, env)  # noqa: S606
    refused: OSError | None = None
    for folder in env.get(b"PATH", b"").split(b":"):
        try:
            os.execve(os.path.join(folder, program), argv, env)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            refused = error
    raise refused or FileNotFoundError(errno.ENOENT, "not found")


def _reset_signals() -> None:
    """Undo what Python has set: it ignores SIGPIPE and SIGXFSZ, and programs would inherit that."""
    for number in signal.valid_signals():
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _prefer_to_be_killed() -> None:
    with suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
        file.write(OOM_SCORE)


def _prctl() -> Any:
    if not LINUX:
        return None
    function = ctypes.CDLL(None).prctl
    function.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    return function


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _stat(pid: int) -> tuple[str, int, int] | None:
    """Return state, parent and time of birth of a process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            # The name of the program may hold spaces and parentheses.
            fields = file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return None
    return (fields[0].decode(), int(fields[1]), int(fields[19])) if len(fields) > 19 else None


def _descendants(root: int) -> list[tuple[int, int]]:
    """Return the processes below one, with their times of birth; without those that only wait to be waited for."""
    children: dict[int, list[tuple[int, str, int]]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _stat(int(name))) is not None:
            children.setdefault(stat[1], []).append((int(name), stat[0], stat[2]))
    found: list[tuple[int, int]] = []
    below = [root]
    while below:
        for pid, state, born in children.pop(below.pop(), ()):
            below.append(pid)
            if state not in "ZX":
                found.append((pid, born))
    return found


def _rest(descriptor: int) -> bytes:
    """Return what is left in the pipe that tells why the command could not be executed."""
    with suppress(OSError):
        return os.read(descriptor, 200)
    return b""


def _read(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(descriptor, size - len(data))
        if not piece:
            os._exit(0)  # the worker died before it said what to run
        data += piece
    return bytes(data)


if __name__ == "__main__":
    main()
