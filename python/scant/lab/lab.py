"""The lab as a Python object: hosts, shaped links and the processes that run on them.

All work in namespaces is done by the agent (agent.py); this side only asks. Methods may be called
from any thread; requests take turns. Closing, or the end of this process, removes everything.
"""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from scant.closing import Closing
from scant.lab import agent, relay
from scant.lab.errors import LabError, UsageError
from scant.lab.loss import LossCounters
from scant.lab.netlink import QueueCounters
from scant.lab.network import HOST_INTERFACE, LinkCounters, Methods, host_address, host_name
from scant.lab.options import HOSTS_MAX, LinkOptions
from scant.lab.relay import RelayCounters

_PACKAGE = str(Path(__file__).resolve().parents[2])  # the folder that holds scant/
_IMPORT = "import sys; sys.path.append(sys.argv.pop(1)); "
_AGENT = _IMPORT + "from scant.lab.agent import main; sys.exit(main(sys.argv))"
MASTER_PORT = 29500
_CLOSE_SECONDS = 10.0
_REQUEST_SECONDS = 120.0

Command = Sequence[str] | Callable[[int], Sequence[str]]


def python_command(module: str, *arguments: str) -> list[str]:
    """Run a module's main(argv) of this very package, installed or not, as a rank."""
    code = f"{_IMPORT}from {module} import main; sys.exit(main(sys.argv))"
    return [sys.executable, "-c", code, _PACKAGE, *arguments]


class RankProcess:
    """One process on one host. ``returncode`` is as in subprocess: negative for a signal."""

    def __init__(
        self,
        lab: Lab,
        rank: int,
        host: int,
        inner_pid: int,
        exit_fd: int,
        stdout: IO[bytes] | None,
        stderr: IO[bytes] | None,
    ) -> None:
        self.rank = rank
        self.host = host
        self.inner_pid = inner_pid
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self.cpu_user_seconds = 0.0
        self.cpu_system_seconds = 0.0
        self.started = time.monotonic()
        self.ended: float | None = None
        self._lab = lab
        self._exit_fd = exit_fd

    def fileno(self) -> int:
        """Readable once the process has ended."""
        return self._exit_fd

    def poll(self) -> int | None:
        return self._collect(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; TimeoutError when the process still runs."""
        code = self._collect(None if timeout is None else max(0.0, timeout))
        if code is None:
            raise TimeoutError(f"rank {self.rank} still runs after {timeout} s")
        return code

    def _collect(self, timeout: float | None) -> int | None:
        if self.returncode is not None:
            return self.returncode
        poller = select.poll()
        poller.register(self._exit_fd, select.POLLIN)
        if not poller.poll(None if timeout is None else timeout * 1e3):
            return None
        told = agent.unpack_exit(os.read(self._exit_fd, 64))
        os.close(self._exit_fd)
        self._exit_fd = -1
        self.ended = time.monotonic()
        if told is None:  # the lab was closed or killed under it
            self.returncode = -signal.SIGKILL
        else:
            status, self.cpu_user_seconds, self.cpu_system_seconds = told
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal the process and its group, on whatever host."""
        if self.returncode is None:
            self._lab.request("signal", process=self.inner_pid, number=int(number))

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def stop(self) -> None:
        self.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        self.send_signal(signal.SIGCONT)

    def close(self) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()


class Lab(Closing):
    """N hosts with shaped links: ``with Lab(hosts=4, link=LinkOptions(...)) as lab: …``."""

    def __init__(
        self,
        hosts: int,
        link: LinkOptions | Sequence[LinkOptions] | None = None,
        *,
        mode: str = "auto",
        ipv6: bool = False,
        seed: int = 1,
        processes_per_host: int = 1,
        shaper: str = "auto",
        delay_method: str = "auto",
    ) -> None:
        if not 1 <= hosts <= HOSTS_MAX:
            raise UsageError(f"hosts: {hosts} is outside 1 to {HOSTS_MAX}")
        if processes_per_host < 1:
            raise UsageError(f"processes_per_host: {processes_per_host} is below 1")
        self.hosts = hosts
        if link is None or isinstance(link, LinkOptions):
            link = [link or LinkOptions()] * hosts
        self.links = list(link)
        if len(self.links) != hosts:
            raise UsageError(f"link: {len(self.links)} given for {hosts} hosts")
        self.processes_per_host = processes_per_host
        self.ipv6 = ipv6
        self.seed = seed
        self.methods = Methods()
        self.processes: list[RankProcess] = []
        self._lock = threading.Lock()
        self._guardian: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._life_fd = -1
        self.mode = mode
        try:
            self._open(shaper, delay_method)
        except BaseException:
            self.close()
            raise

    @property
    def world_size(self) -> int:
        return self.hosts * self.processes_per_host

    @property
    def isolated(self) -> bool:
        """Whether hosts are namespaces; false in loopback mode."""
        return self.mode != "loopback"

    @property
    def interface(self) -> str:
        return HOST_INTERFACE if self.isolated else "lo"

    @property
    def agent_pid(self) -> int:
        """The process whose end takes the lab with it, as seen from outside."""
        return self._guardian.pid if self._guardian is not None else -1

    def address(self, host: int) -> str:
        if self.isolated:
            return host_address(host, self.ipv6)
        return "::1" if self.ipv6 else "127.0.0.1"

    def _open(self, shaper: str, delay_method: str) -> None:
        if self.mode == "auto":
            self.mode = self._start_best()
        else:
            self._start(self.mode)
        if not self.isolated:
            if any(link.delay_seconds or link.loss.mean for link in self.links):
                raise LabError("delay and loss need network namespaces; loopback has neither")
            return
        found = self.request("probe")
        if shaper == "auto":
            shaper = "tbf" if found["tbf"] else "htb"
        if not found.get(shaper):
            raise LabError(f"this kernel has no {shaper} queue (CONFIG_NET_SCH_{shaper.upper()})")
        if delay_method == "auto":
            delay_method = "netem" if found["netem"] else "relay"
        self.methods = Methods(shaper, delay_method)
        for link in self.links:
            self.check_link(link)
        self.request(
            "build",
            links=[agent.link_to_json(link) for link in self.links],
            methods=dataclasses.asdict(self.methods),
            ipv6=self.ipv6,
            seed=self.seed,
        )

    def check_link(self, link: LinkOptions) -> None:
        """Raise LabError for a link that this lab could not make."""
        if not self.isolated:
            raise LabError("links cannot be changed in loopback mode")
        if self.methods.delay == "relay":
            relay.check_link(link)
        if self.mode == "user" and link.loss.mean:
            raise LabError("--loss needs root: a user namespace may not load XDP programs")

    def _start_best(self) -> str:
        """Namespaces as root, or as root of a user namespace; the error tells why neither."""
        reasons = []
        for mode in ("root", "user") if os.geteuid() == 0 else ("user",):
            try:
                self._start(mode)
                return mode
            except LabError as error:
                self.close()
                reasons.append(f"as {'root' if mode == 'root' else 'user namespace'}: {error}")
        raise LabError("no network namespaces: " + "; ".join(reasons))

    def _start(self, mode: str) -> None:
        if not sys.executable:
            raise LabError("sys.executable is empty: the lab cannot start its agent")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        life_read, self._life_fd = os.pipe2(os.O_CLOEXEC)
        fds = (theirs.fileno(), life_read)
        try:
            self._guardian = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _AGENT,
                    _PACKAGE,
                    *map(str, fds),
                    mode,
                    "--owner",
                    str(os.getpid()),
                ],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(life_read)
        ours.settimeout(_REQUEST_SECONDS)
        self._channel = ours
        self._receive()

    def _receive(self) -> Any:
        assert self._channel is not None
        try:
            reply, _ = agent.receive_message(self._channel)
        except (EOFError, ConnectionError) as error:
            raise LabError("the lab's agent has ended") from error
        except TimeoutError as error:
            raise LabError(f"the lab's agent did not answer in {_REQUEST_SECONDS} s") from error
        if "error" in reply:
            raise LabError(reply["error"])
        return reply["ok"]

    def request(self, op: str, fds: Sequence[int] = (), **arguments: Any) -> Any:
        """One request to the agent; for this package's own use."""
        with self._lock:
            if self._channel is None:
                raise LabError("the lab is closed")
            try:
                agent.send_message(self._channel, {"op": op, **arguments}, list(fds))
            except ConnectionError as error:
                raise LabError("the lab's agent has ended") from error
            return self._receive()

    def environment(self, rank: int) -> dict[str, str]:
        """What torchrun would set for this rank, and which interface to use."""
        host, local = divmod(rank, self.processes_per_host)
        found = {
            "RANK": str(rank),
            "LOCAL_RANK": str(local),
            "GROUP_RANK": str(host),
            "ROLE_RANK": str(rank),
            "ROLE_NAME": "default",
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.processes_per_host),
            "GROUP_WORLD_SIZE": str(self.hosts),
            "ROLE_WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": self.address(0),
            "MASTER_PORT": str(MASTER_PORT if self.isolated else self._loopback_port()),
            "SCANT_LAB": self.mode,
            "SCANT_LAB_HOST": str(host),
            "SCANT_INTERFACE": self.interface,
            "GLOO_SOCKET_IFNAME": self.interface,
        }
        rate = self.links[host].up
        if not self.isolated and rate is not None:
            share = rate // 8 // self.processes_per_host
            found["SCANT_RATE_LIMIT"] = str(max(1, share))
        return found

    def _loopback_port(self) -> int:
        """A port that was free a moment ago; the same for all ranks of this lab."""
        if not hasattr(self, "_port"):
            family = socket.AF_INET6 if self.ipv6 else socket.AF_INET
            with socket.socket(family) as probe:
                probe.bind((self.address(0), 0))
                self._port: int = probe.getsockname()[1]
        return self._port

    def run(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        ranks: Sequence[int] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> list[RankProcess]:
        """Start the command once per rank (all of them unless ``ranks`` says which).

        ``command`` is an argument list in which ``{rank}``, ``{host}``, ``{world_size}`` and
        ``{address}`` are replaced, or a function of the rank that returns one. ``env`` is added to
        this process's own. ``stdout`` and ``stderr`` are as in subprocess; None inherits.
        """
        started: list[RankProcess] = []
        for rank in range(self.world_size) if ranks is None else ranks:
            if not 0 <= rank < self.world_size:
                raise UsageError(f"ranks: {rank} is outside 0 to {self.world_size - 1}")
            full = dict(os.environ)
            full.setdefault("OMP_NUM_THREADS", "1")
            full.update(self.environment(rank))
            full.update(env or {})
            argv = command(rank) if callable(command) else self._fill(command, rank)
            try:
                started.append(self._spawn(rank, list(argv), full, cwd, stdout, stderr))
            except LabError:
                for process in started:
                    with suppress(LabError):
                        process.kill()
                raise
        self.processes += started
        return started

    def _fill(self, command: Sequence[str], rank: int) -> list[str]:
        host = rank // self.processes_per_host
        values = {
            "{rank}": str(rank),
            "{host}": str(host),
            "{local_rank}": str(rank % self.processes_per_host),
            "{world_size}": str(self.world_size),
            "{address}": self.address(host),
        }
        filled = []
        for word in command:
            for name, value in values.items():
                word = word.replace(name, value)
            filled.append(word)
        return filled

    def _spawn(
        self,
        rank: int,
        argv: list[str],
        env: dict[str, str],
        cwd: str | os.PathLike[str] | None,
        stdout: int | IO[bytes] | None,
        stderr: int | IO[bytes] | None,
    ) -> RankProcess:
        host = rank // self.processes_per_host
        exit_read, exit_write = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        ours: list[IO[bytes] | None] = []
        theirs: list[int] = []
        close: list[int] = [exit_write, null]
        try:
            for target, inherited in ((stdout, 1), (stderr, 2)):
                stream: IO[bytes] | None = None
                fd = inherited
                if target == subprocess.PIPE:
                    read, fd = os.pipe2(os.O_CLOEXEC)
                    stream = os.fdopen(read, "rb", buffering=0)
                    close.append(fd)
                elif target == subprocess.DEVNULL:
                    fd = null
                elif target == subprocess.STDOUT:
                    fd = theirs[0]
                elif target is not None:
                    fd = target if isinstance(target, int) else target.fileno()
                ours.append(stream)
                theirs.append(fd)
            inner = self.request(
                "spawn",
                [null, theirs[0], theirs[1], exit_write],
                host=host,
                argv=argv,
                env=env,
                cwd=os.fspath(cwd) if cwd is not None else str(Path.cwd()),
            )
        except BaseException:
            os.close(exit_read)
            for opened in ours:
                if opened is not None:
                    opened.close()
            raise
        finally:
            for fd in close:
                os.close(fd)
        return RankProcess(self, rank, host, inner, exit_read, ours[0], ours[1])

    def set_link(self, host: int, link: LinkOptions | None = None, **changes: Any) -> None:
        """Reshape a host's link while it runs: whole options, or fields of the current ones."""
        if not 0 <= host < self.hosts:
            raise UsageError(f"host {host} is outside 0 to {self.hosts - 1}")
        wanted = dataclasses.replace(link or self.links[host], **changes)
        self.check_link(wanted)
        self.request("set_link", host=host, link=agent.link_to_json(wanted))
        self.links[host] = wanted

    def set_plugged(self, host: int, plugged: bool) -> None:
        """Pull a host's cable, or put it back."""
        if not 0 <= host < self.hosts:
            raise UsageError(f"host {host} is outside 0 to {self.hosts - 1}")
        if not self.isolated:
            raise LabError("links cannot be changed in loopback mode")
        self.request("set_plugged", host=host, plugged=plugged)

    def counters(self) -> list[LinkCounters]:
        """Every link's counters since the lab was built; empty in loopback mode."""
        if not self.isolated:
            return []
        found = []
        for link in self.request("counters"):
            found.append(
                LinkCounters(
                    up=QueueCounters(**link["up"]),
                    down=QueueCounters(**link["down"]),
                    loss=LossCounters(**link["loss"]) if link["loss"] else None,
                    relay=RelayCounters(**link["relay"]) if link["relay"] else None,
                )
            )
        return found

    def bytes(self) -> list[tuple[int, int]]:
        """Wire bytes sent and received by each host, all headers included."""
        return [(link.up.bytes, link.down.bytes) for link in self.counters()]

    def host_name(self, host: int) -> str:
        return host_name(host) if self.isolated else socket.gethostname()

    def close(self) -> None:
        """Kill what runs, remove everything. Safe to call twice."""
        with self._lock:
            if self._channel is not None:
                with suppress(OSError):
                    agent.send_message(self._channel, {"op": "close"})
                self._channel.close()
                self._channel = None
        if self._life_fd >= 0:
            os.close(self._life_fd)
            self._life_fd = -1
        if self._guardian is not None:
            try:
                self._guardian.wait(_CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self._guardian.kill()
                self._guardian.wait()
            self._guardian = None
        for process in self.processes:
            process.poll()
            process.close()
