"""The processes that hold a lab: a guardian, and under it the agent that owns the namespaces.

The guardian makes the namespaces, forks the agent as process 1 of a new PID namespace and watches
both it and the lab's own process through a pipe. When either ends, however it ends, the kernel
kills everything in the PID namespace and with the last descriptor the network is gone. The agent
serves requests on a socket: build, spawn, signal, reshape, count. Each is single-threaded.
"""

from __future__ import annotations

import array
import dataclasses
import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scant.lab import network, system
from scant.lab.errors import LabError, UsageError
from scant.lab.network import Methods, Network, host_address, host_name, require_tools
from scant.lab.options import LinkOptions, Loss

MESSAGE_BYTES_MAX = 1 << 20
_FDS_MAX = 8
_EXIT_BYTES = struct.Struct("=idd")  # wait status, user and system CPU seconds


def pack_exit(status: int, user_seconds: float, system_seconds: float) -> bytes:
    return _EXIT_BYTES.pack(status, user_seconds, system_seconds)


def unpack_exit(data: bytes) -> tuple[int, float, float] | None:
    """Wait status and CPU seconds, or None when the agent died before it could tell."""
    if len(data) != _EXIT_BYTES.size:
        return None
    status, user_seconds, system_seconds = _EXIT_BYTES.unpack(data)
    return status, user_seconds, system_seconds


def send_message(channel: socket.socket, message: Any, fds: list[int] | None = None) -> None:
    """One message is one length word and its JSON; descriptors ride on the length word."""
    data = json.dumps(message).encode()
    ancillary = []
    if fds:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    channel.sendmsg([struct.pack("=I", len(data))], ancillary)
    channel.sendall(data)


def receive_message(channel: socket.socket) -> tuple[Any, list[int]]:
    """The next message and its descriptors; EOFError when the other side is gone."""
    space = socket.CMSG_SPACE(_FDS_MAX * array.array("i").itemsize)
    head, ancillary, _, _ = channel.recvmsg(4, space, socket.MSG_WAITALL)
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    if len(head) < 4:
        raise EOFError
    (length,) = struct.unpack("=I", head)
    if length > MESSAGE_BYTES_MAX:
        raise OSError("message too long")
    body = bytearray()
    while len(body) < length:
        part = channel.recv(length - len(body))
        if not part:
            raise EOFError
        body += part
    return json.loads(bytes(body)), list(fds)


def link_to_json(link: LinkOptions) -> dict[str, Any]:
    return dataclasses.asdict(link)


def link_from_json(data: dict[str, Any]) -> LinkOptions:
    return LinkOptions(**{**data, "loss": Loss(**data["loss"])})


class _Agent:
    """Process 1 of the lab: network, ranks and requests."""

    def __init__(self, channel: socket.socket, isolated: bool) -> None:
        self._channel = channel
        self._isolated = isolated
        self._network: Network | None = None
        self._hosts: list[str] = []
        self._exit_pipes: dict[int, int] = {}

    def serve(self, guardian_fd: int) -> None:
        """Answer until told to close, or the lab's owner or the guardian is gone."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poller = select.poll()
        poller.register(wake_read, select.POLLIN)
        poller.register(self._channel, select.POLLIN)
        poller.register(guardian_fd, 0)  # POLLHUP is always reported
        while True:
            ready = dict(poller.poll())
            if guardian_fd in ready:
                return
            if wake_read in ready:
                with suppress(BlockingIOError):
                    os.read(wake_read, 4096)
                self._reap()
            if self._channel.fileno() in ready:
                message, fds = receive_message(self._channel)
                if message["op"] == "close":
                    return
                self._answer(message, fds)

    def _answer(self, message: dict[str, Any], fds: list[int]) -> None:
        handler: Callable[..., Any] = getattr(self, f"_do_{message.pop('op')}")
        try:
            reply = {"ok": handler(*([fds] if fds else []), **message)}
        except (LabError, UsageError, OSError) as error:
            reply = {"error": str(error)}
        finally:
            for fd in fds:
                os.close(fd)
        send_message(self._channel, reply)

    def _reap(self) -> None:
        """Collect the dead: ranks report through their pipes, orphans are just buried."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            pipe = self._exit_pipes.pop(pid, None)
            if pipe is None:
                if self._network is not None:
                    self._network.process_ended(pid)
                continue
            with suppress(BrokenPipeError):
                os.write(pipe, pack_exit(status, usage.ru_utime, usage.ru_stime))
            os.close(pipe)

    def _do_probe(self) -> dict[str, bool]:
        require_tools()
        return {kind: network.has_queue(kind) for kind in network.QUEUE_PROBES}

    def _do_build(
        self, links: list[dict[str, Any]], methods: dict[str, str], ipv6: bool, seed: int
    ) -> None:
        require_tools()
        options = [link_from_json(link) for link in links]
        self._network = Network(options, Methods(**methods), ipv6, seed)
        for host in range(len(options)):
            address, name = host_address(host, ipv6), host_name(host)
            self._hosts.append(f"{address} {name}\n")
            if not ipv6:  # dual-stack sockets, as torch's, look up the mapped address
                self._hosts.append(f"::ffff:{address} {name}\n")

    def _do_set_link(self, host: int, link: dict[str, Any]) -> None:
        assert self._network is not None
        self._network.set_link(host, link_from_json(link))

    def _do_set_plugged(self, host: int, plugged: bool) -> None:
        assert self._network is not None
        self._network.set_plugged(host, plugged)

    def _do_counters(self) -> list[dict[str, Any]]:
        assert self._network is not None
        return [dataclasses.asdict(link) for link in self._network.counters()]

    def _do_signal(self, process: int, number: int) -> bool:
        if process not in self._exit_pipes:
            return False
        with suppress(ProcessLookupError):
            os.killpg(process, number)
        return True

    def _do_spawn(
        self, fds: list[int], host: int, argv: list[str], env: dict[str, str], cwd: str
    ) -> int:
        """Start a process on a host; descriptors: stdin, stdout, stderr, exit pipe."""
        error_read, error_write = os.pipe2(os.O_CLOEXEC)
        process = os.fork()
        if process == 0:
            self._become_rank(fds, error_write, host, argv, env, cwd)
        os.close(error_write)
        with os.fdopen(error_read, "rb") as pipe:
            failure = pipe.read()
        if failure:
            os.waitpid(process, 0)
            raise LabError(failure.decode(errors="replace"))
        self._exit_pipes[process] = os.dup(fds[3])
        self._reap()
        return process

    def _become_rank(
        self,
        fds: list[int],
        error_write: int,
        host: int,
        argv: list[str],
        env: dict[str, str],
        cwd: str,
    ) -> None:
        """In the child: enter the host, become the command. Never returns."""
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            if self._isolated:
                self._enter_host(host)
            else:
                system.die_with_parent(signal.SIGKILL)
            for number in range(3):
                os.dup2(fds[number], number, inheritable=True)
            os.chdir(cwd)
            for name in ("SIGCHLD", "SIGINT", "SIGTERM", "SIGPIPE", "SIGXFSZ"):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            os.execvpe(argv[0], argv, env)  # noqa: S606 (the command is the user's own)
        except BaseException as error:
            name = argv[0] if argv else "?"
            reason = error.strerror if isinstance(error, OSError) else repr(error)
            with suppress(OSError):
                os.write(error_write, f"{name}: {reason}".encode())
        finally:
            os._exit(127)

    def _enter_host(self, host: int) -> None:
        assert self._network is not None
        system.setns(self._network.namespace(host), system.CLONE_NEWNET)
        system.unshare(system.CLONE_NEWNS | system.CLONE_NEWUTS)
        socket.sethostname(host_name(host))
        _mount_sys()
        with suppress(OSError):
            _mount_hosts("127.0.0.1 localhost\n::1 localhost\n" + "".join(self._hosts))


def _mount_sys() -> None:
    """Give the host's own /sys/class/net; the control groups stay visible."""
    groups = None
    with suppress(OSError):
        groups = os.open("/sys/fs/cgroup", os.O_PATH)
    try:
        with suppress(OSError):  # a user namespace may not; then /sys shows the main interfaces
            system.mount("sysfs", "/sys", "sysfs")
            if groups is not None:
                source = f"/proc/self/fd/{groups}"
                system.mount(source, "/sys/fs/cgroup", "", system.MS_BIND | system.MS_REC)
    finally:
        if groups is not None:
            os.close(groups)


def _mount_hosts(text: str) -> None:
    """Let host names of the lab resolve: a private /etc/hosts out of memory, no file on disk."""
    system.mount("tmpfs", "/mnt", "tmpfs")
    try:
        Path("/mnt/hosts").write_text(text, encoding="ascii")
        system.mount("/mnt/hosts", "/etc/hosts", "", system.MS_BIND)
    finally:
        system.unmount("/mnt")


def _map_user() -> None:
    """Become root of a new user namespace."""
    uid, gid = os.getuid(), os.getgid()
    system.unshare(system.CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {uid} 1"),
        ("gid_map", f"0 {gid} 1"),
    ):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")


def _run_agent(channel: socket.socket, mode: str, guardian_read: int) -> None:
    """In the forked child: report readiness or the reason against it, then serve."""
    isolated = mode != "loopback"
    system.set_process_name("lab-agent")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if isolated:
            system.die_with_parent(signal.SIGKILL)
            system.mount("none", "/", "", system.MS_REC | system.MS_PRIVATE)
            system.mount("proc", "/proc", "proc")
        else:
            system.become_subreaper()
    except OSError as error:
        send_message(channel, {"error": f"preparing the namespaces: {error.strerror}"})
        return
    send_message(channel, {"ok": None})
    with suppress(EOFError, ConnectionError):
        _Agent(channel, isolated).serve(guardian_read)
    if not isolated:
        _kill_descendants()


def _kill_descendants() -> None:
    """Without a PID namespace: orphans come to the guardian, who kills until none is left."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        children: list[int] = []
        with suppress(OSError):
            text = Path("/proc/thread-self/children").read_text(encoding="ascii")
            children = [int(pid) for pid in text.split()]
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def guard(channel: socket.socket, life_fd: int, mode: str) -> int:
    """The guardian's whole life; returns its exit status."""
    system.set_process_name("lab-guardian")
    try:
        if mode == "user":
            _map_user()
        if mode == "loopback":
            system.become_subreaper()
        else:
            system.unshare(system.CLONE_NEWPID | system.CLONE_NEWNS | system.CLONE_NEWNET)
    except OSError as error:
        send_message(channel, {"error": f"creating namespaces: {error}"})
        return 1
    guardian_read, guardian_write = os.pipe2(os.O_CLOEXEC)
    agent = os.fork()
    if agent == 0:
        try:
            os.close(guardian_write)
            os.close(life_fd)
            _run_agent(channel, mode, guardian_read)
        finally:
            os._exit(0)
    os.close(guardian_read)
    channel.close()
    agent_fd = os.pidfd_open(agent)
    poller = select.poll()
    poller.register(agent_fd, select.POLLIN)
    poller.register(life_fd, 0)  # POLLHUP is always reported
    with suppress(KeyboardInterrupt):
        poller.poll()
    with suppress(ProcessLookupError):
        os.kill(agent, signal.SIGKILL)
    os.waitpid(agent, 0)
    if mode == "loopback":
        _kill_descendants()
    return 0


def main(argv: list[str]) -> int:
    """``agent CHANNEL_FD LIFE_FD MODE --owner PID``, started by :class:`scant.lab.Lab` only."""
    channel_fd, life_fd, mode = int(argv[1]), int(argv[2]), argv[3]
    for fd in (channel_fd, life_fd):
        os.set_inheritable(fd, False)
    channel = socket.socket(fileno=channel_fd)
    return guard(channel, life_fd, mode)
