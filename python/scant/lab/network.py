"""Builds and reshapes the lab's network: one namespace per host, one bridge in the switch's.

    host i: eth0 ──[shaper up]──► h<i> (loss, delay) ─► br0 ─► [shaper down] h<j> ──► eth0: host j

Runs in the agent, which is single-threaded and lives in the switch's namespace. Everything is
unnamed and held by descriptors, so that it vanishes with the process.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from scant.lab.errors import LabError
from scant.lab.loss import LossCounters, LossProgram, splitmix64
from scant.lab.netlink import QueueCounters, QueueReader
from scant.lab.options import LinkOptions, burst_for, super_frame_for
from scant.lab.relay import Relay, RelayCounters
from scant.lab.system import inside_network, new_network_namespace
from scant.lab.units import RATE_MAX_BITS_PER_SECOND

HOST_INTERFACE = "eth0"
_BRIDGE = "br0"
_TOOL_TIMEOUT_SECONDS = 60
_MTU = 1500


def host_address(host: int, ipv6: bool) -> str:
    return f"fd53:6361:6e74::{host + 1:x}" if ipv6 else f"10.133.7.{host + 1}"


def host_name(host: int) -> str:
    return f"host{host}"


@dataclasses.dataclass(frozen=True)
class LinkCounters:
    """One link as the kernel counts it; all totals run from the lab's start."""

    up: QueueCounters = dataclasses.field(default_factory=QueueCounters)
    down: QueueCounters = dataclasses.field(default_factory=QueueCounters)
    loss: LossCounters | None = None
    relay: RelayCounters | None = None


@dataclasses.dataclass(frozen=True)
class Methods:
    """How this machine does what: shaper "tbf" or "htb", delay "netem" or "relay"."""

    shaper: str = "tbf"
    delay: str = "relay"


def require_tools() -> None:
    missing = [tool for tool in ("ip", "tc", "bridge") if shutil.which(tool) is None]
    if missing:
        raise LabError(
            f"{', '.join(missing)} not found: install iproute2 (apt-get install iproute2)"
        )


def run_tool(tool: str, lines: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
    """Run one iproute2 tool on a batch of commands; the first failure is an error."""
    try:
        done = subprocess.run(
            [tool, "-batch", "-"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            pass_fds=pass_fds,
            timeout=_TOOL_TIMEOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"{tool} not found: install iproute2") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{tool} hung for {_TOOL_TIMEOUT_SECONDS} s") from error
    if done.returncode != 0:
        detail = " ".join(done.stderr.split())
        raise LabError(f"{tool} failed: {detail} (commands: {lines[0]} …)")


QUEUE_PROBES = {
    "tbf": "root tbf rate 1mbit burst 4000 limit 10000",
    "htb": "root handle 1: htb default 1",
    "netem": "root netem delay 1ms",
}


def has_queue(kind: str) -> bool:
    """Whether this kernel makes such a queue; tried on the namespace's own loopback device."""
    try:
        run_tool("tc", [f"qdisc add dev lo {QUEUE_PROBES[kind]}"])
    except LabError:
        return False
    run_tool("tc", ["qdisc del dev lo root"])
    return True


def _sysctl(name: str, value: str) -> None:
    """Set a network sysctl of the current namespace if the kernel has it."""
    path = Path("/proc/sys/net") / name
    if path.exists():
        path.write_text(value)


class _Host:
    def __init__(self, index: int, options: LinkOptions) -> None:
        self.index = index
        self.port = f"h{index}"
        self.mac = f"02:5c:a7:00:{index >> 8:02x}:{index & 255:02x}"
        self.options = options
        self.namespace = new_network_namespace()
        self.port_index = 0
        self.interface_index = 0
        self.reader: QueueReader | None = None
        self.loss: LossProgram | None = None
        self.relay: Relay | None = None


class Network:
    """The hosts, their links and what is counted on them."""

    def __init__(
        self, links: Sequence[LinkOptions], methods: Methods, ipv6: bool, seed: int
    ) -> None:
        self._methods = methods
        self._ipv6 = ipv6
        self._seed = seed
        self._broken = ""
        self._hosts = [_Host(index, options) for index, options in enumerate(links)]
        self._build_switch()
        for host in self._hosts:
            self._build_host(host)
        self._reader = QueueReader()
        for host in self._hosts:
            self._apply_loss(host)
            self._apply_delay(host)

    def namespace(self, host: int) -> int:
        return self._hosts[host].namespace

    def _build_switch(self) -> None:
        _sysctl("ipv6/conf/all/disable_ipv6", "1")
        _sysctl("ipv6/conf/default/disable_ipv6", "1")
        _sysctl("bridge/bridge-nf-call-iptables", "0")
        _sysctl("bridge/bridge-nf-call-ip6tables", "0")
        commands = [
            "link set lo up",
            f"link add {_BRIDGE} type bridge stp_state 0 mcast_snooping 0 ageing_time 0",
            f"link set {_BRIDGE} up",
        ]
        for host in self._hosts:
            commands.append(
                f"link add {host.port} mtu {_MTU} type veth peer name {HOST_INTERFACE} "
                f"mtu {_MTU} address {host.mac} netns /proc/self/fd/{host.namespace}"
            )
            commands.append(f"link set {host.port} master {_BRIDGE} up")
        run_tool("ip", commands, [host.namespace for host in self._hosts])
        # All addresses are known: no flooding, and no learning from frames that a relay delays.
        entries = [f"fdb replace {h.mac} dev {h.port} master static" for h in self._hosts]
        run_tool("bridge", entries)
        shapers = []
        for host in self._hosts:
            host.port_index = socket.if_nametoindex(host.port)
            shapers += self._shape(host.port, host.options, host.options.down, "add")
        run_tool("tc", shapers)

    def _build_host(self, host: _Host) -> None:
        bits = 64 if self._ipv6 else 24
        flags = " nodad" if self._ipv6 else ""
        address = host_address(host.index, self._ipv6)
        device = HOST_INTERFACE
        commands = [
            "link set lo up",
            f"link set {device} {_offload(host.options)} up",
            f"addr add {address}/{bits} dev {device}{flags}",
        ]
        for peer in self._hosts:
            if peer is not host:
                neighbour = host_address(peer.index, self._ipv6)
                commands.append(
                    f"neigh replace {neighbour} lladdr {peer.mac} dev {device} nud permanent"
                )
        with inside_network(host.namespace):
            if self._ipv6:
                _sysctl("ipv6/conf/default/addr_gen_mode", "1")
                _sysctl(f"ipv6/conf/{device}/addr_gen_mode", "1")
                _sysctl(f"ipv6/conf/{device}/router_solicitations", "0")
            else:
                _sysctl("ipv6/conf/all/disable_ipv6", "1")
                _sysctl("ipv6/conf/default/disable_ipv6", "1")
                _sysctl("ipv6/conf/lo/disable_ipv6", "0")
            run_tool("ip", commands)
            run_tool("tc", self._shape_up(host, "add"))
            host.interface_index = socket.if_nametoindex(device)
            host.reader = QueueReader()

    def _shape(self, device: str, options: LinkOptions, rate: int | None, verb: str) -> list[str]:
        """tc commands that make or change the shaper; an unlimited link gets the highest rate."""
        bits = rate or RATE_MAX_BITS_PER_SECOND
        burst, queue = burst_for(bits), options.queue_for(bits)
        if self._methods.shaper == "tbf":
            root = f"qdisc {verb if verb == 'add' else 'change'} dev {device} root handle 1:"
            return [f"{root} tbf rate {bits}bit burst {burst} limit {queue}"]
        commands = []
        if verb == "add":
            commands.append(f"qdisc add dev {device} root handle 1: htb default 1")
        commands.append(
            f"class {verb} dev {device} parent 1: classid 1:1 htb rate {bits}bit ceil {bits}bit "
            f"burst {burst} cburst {burst} quantum {max(_MTU + 14, min(burst, 60000))}"
        )
        if verb == "add" or self._methods.delay != "netem":
            commands.append(f"qdisc replace dev {device} parent 1:1 handle 10: bfifo limit {queue}")
        return commands

    def _shape_up(self, host: _Host, verb: str) -> list[str]:
        options = host.options
        commands = self._shape(HOST_INTERFACE, options, options.up, verb)
        if self._methods.delay == "netem" and (options.delay_seconds > 0 or verb == "change"):
            rate = options.up or RATE_MAX_BITS_PER_SECOND
            # netem holds the frames in flight and the queue; its limit counts frames.
            held = rate / 8 * options.delay_seconds + options.queue_for(rate)
            commands.append(
                f"qdisc replace dev {HOST_INTERFACE} parent 1:1 handle 20: netem "
                f"delay {round(options.delay_seconds * 1e6)}us limit {max(1000, int(held / 500))}"
            )
        return commands

    def set_link(self, index: int, options: LinkOptions) -> None:
        """Reshape a link while traffic flows; counters and queued frames stay."""
        host = self._hosts[index]
        host.options = options
        run_tool("tc", self._shape(host.port, options, options.down, "change"))
        with inside_network(host.namespace):
            run_tool("ip", [f"link set {HOST_INTERFACE} {_offload(options)}"])
            run_tool("tc", self._shape_up(host, "change"))
        self._apply_loss(host)
        self._apply_delay(host)

    def set_plugged(self, index: int, plugged: bool) -> None:
        """Take a host's port down, as pulling the cable does, or up again."""
        host = self._hosts[index]
        run_tool("ip", [f"link set {host.port} {'up' if plugged else 'down'}"])

    def _apply_loss(self, host: _Host) -> None:
        if host.loss is not None:
            host.loss.set(host.options.loss)
            return
        if host.options.loss.mean == 0:
            return
        _, seed = splitmix64(self._seed + host.index)
        try:
            host.loss = LossProgram(host.options.loss, seed)
            host.loss.attach(host.port_index)
        except OSError as error:
            raise LabError(
                f"loss needs XDP on veth (root, CONFIG_BPF_SYSCALL): {error.strerror}"
            ) from error

    def _apply_delay(self, host: _Host) -> None:
        if self._methods.delay == "netem":
            return
        delay_ns = round(host.options.delay_seconds * 1e9)
        if host.relay is not None:
            host.relay.set_delay_ns(delay_ns)
        elif delay_ns > 0:
            host.relay = Relay(host.port, _BRIDGE, delay_ns)
            # The relay has its copy before this filter drops the original (2: TC_ACT_SHOT).
            run_tool(
                "tc",
                [
                    f"qdisc add dev {host.port} clsact",
                    f"filter add dev {host.port} ingress bpf bytecode '1,6 0 0 2' da",
                ],
            )

    def counters(self) -> list[LinkCounters]:
        if self._broken:
            raise LabError(self._broken)
        ports = self._reader.read()
        found = []
        for host in self._hosts:
            assert host.reader is not None
            up = host.reader.read().get(host.interface_index, QueueCounters())
            found.append(
                LinkCounters(
                    up=up,
                    down=ports.get(host.port_index, QueueCounters()),
                    loss=host.loss.counters() if host.loss else None,
                    relay=host.relay.counters() if host.relay else None,
                )
            )
        return found

    def process_ended(self, process: int) -> None:
        """Take note when it was a relay: its link is dead, which must not pass for a result."""
        for host in self._hosts:
            if host.relay is not None and host.relay.process == process:
                self._broken = f"the relay of host {host.index} has ended: its link is dead"

    def close(self) -> None:
        for host in self._hosts:
            if host.relay:
                host.relay.close()
            if host.loss:
                host.loss.close()
            if host.reader:
                host.reader.close()
            os.close(host.namespace)
        self._reader.close()


def _offload(options: LinkOptions) -> str:
    return f"gso_max_size {super_frame_for(options.up)}"
