"""Open MPI beside gloo and scant: mpi_collectives.cc, built, launched in the lab and driven.

Each rank of the benchmark drives the MPI process of its own host through two named pipes. Hosts of
the lab have no ssh: mpirun runs on host 0, and its launch agent hands each host's daemon command
through a named pipe to a shell that the lab started there.
"""

from __future__ import annotations

import os
import pathlib
import select
import shutil
import subprocess
import sys
import time
from typing import Any

import harness

SOURCE = pathlib.Path(__file__).with_name("mpi_collectives.cc")
PROGRAM = pathlib.Path(__file__).parents[2] / "build" / "bench" / "mpi_collectives"
LABELS = {"mpi_tcp": "Open MPI over TCP", "mpi_default": "Open MPI as it comes"}
START_S = 60.0
ANSWER_S = 600.0

AGENT = """#!/bin/sh
# mpirun calls: agent HOST COMMAND…
host=$1
shift
printf '%s\\n' "$*" > '{folder}'/daemon."$host"
"""
# The lab's side of the agent: waits for the host's command, then is its daemon.
DAEMON = 'command=$(cat "$0") && exec sh -c "exec $command"'


class MpiError(Exception):
    """Open MPI is absent or would not start; a sentence for the table."""


def variants(network: str) -> tuple[str, ...]:
    """On one host also shared memory, which Open MPI takes by itself."""
    return ("mpi_tcp", "mpi_default") if network == "loopback" else ("mpi_tcp",)


def build() -> pathlib.Path:
    """The program, compiled anew when its source is newer."""
    for tool in ("mpicxx", "mpirun"):
        if shutil.which(tool) is None:
            raise MpiError(f"no {tool} (Debian: openmpi-bin, libopenmpi-dev)")
    if PROGRAM.exists() and PROGRAM.stat().st_mtime > SOURCE.stat().st_mtime:
        return PROGRAM
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    fresh = PROGRAM.with_suffix(f".{os.getpid()}")
    command = ["mpicxx", "-std=c++20", "-O3", "-DOMPI_SKIP_MPICXX", "-Wall", "-Wextra"]
    done = subprocess.run(
        [*command, "-o", str(fresh), str(SOURCE)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise MpiError(f"mpicxx failed: {last_line(done.stderr)}")
    fresh.replace(PROGRAM)
    return PROGRAM


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip().strip("-")]
    return lines[-1] if lines else "no output"


def mpirun_command(lab: Any, variant: str, folder: pathlib.Path) -> list[str]:
    """One mpirun on host 0 for all ranks of the lab."""
    world = lab.world_size
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
    command += ["--map-by", "slot", "-np", str(world)]
    settings = {
        "btl_base_warn_component_unused": "0",
        "orte_tmpdir_base": str(folder),
        "oob_tcp_if_include": lab.interface,
    }
    if world >= (os.cpu_count() or 1):
        # mpirun sees one rank a host and would let each poll a core that others need too.
        settings["mpi_yield_when_idle"] = "1"
    if variant == "mpi_tcp":
        settings |= {"pml": "ob1", "btl": "tcp,self", "btl_tcp_if_include": lab.interface}
    if lab.hosts > 1:
        names = [f"{lab.host_name(host)}:{lab.processes_per_host}" for host in range(lab.hosts)]
        command += ["--host", ",".join(names), "--leave-session-attached"]
        settings |= {
            "plm": "rsh",
            "plm_rsh_agent": str(folder / "agent"),
            "plm_rsh_no_tree_spawn": "1",
        }
    for name, value in settings.items():
        command += ["--mca", name, value]
    return [*command, str(PROGRAM), str(folder)]


def launch(lab: Any, variant: str, folder: pathlib.Path) -> pathlib.Path:
    """Starts the MPI processes; they wait for commands, and end with the lab at the latest."""
    if lab.hosts > 1 and not lab.isolated:
        raise MpiError("needs network namespaces")
    folder.mkdir()
    for rank in range(lab.world_size):
        os.mkfifo(folder / f"in.{rank}")
        os.mkfifo(folder / f"out.{rank}")
    agent = folder / "agent"
    agent.write_text(AGENT.format(folder=folder))
    agent.chmod(0o755)
    log = (folder / "log").open("wb")
    with log:
        for host in range(1, lab.hosts):
            pipe = folder / f"daemon.{lab.host_name(host)}"
            os.mkfifo(pipe)
            rank = host * lab.processes_per_host
            command = ["sh", "-c", DAEMON, str(pipe)]
            lab.run(command, ranks=[rank], stdout=log, stderr=log)
        command = mpirun_command(lab, variant, folder)
        (mpirun,) = lab.run(command, ranks=[0], stdout=log, stderr=log)
    await_ready(lab.world_size, mpirun, folder)
    return folder


def await_ready(world: int, mpirun: Any, folder: pathlib.Path) -> None:
    """Returns when every MPI process is past its first barrier."""
    deadline = time.monotonic() + START_S
    while len(list(folder.glob("ready.*"))) < world:
        ended = mpirun.poll() is not None
        if ended or time.monotonic() > deadline:
            mpirun.kill()
            said = last_line((folder / "log").read_text(errors="replace"))
            what = "ended" if ended else f"not ready in {START_S:.0f} s"
            raise MpiError(f"mpirun {what}: {said}")
        time.sleep(0.02)


def launch_all(
    lab: Any, network: str, folder: pathlib.Path
) -> tuple[dict[str, str], list[harness.Row]]:
    """Folders of the variants that run, and a row with the reason for each that does not."""
    running: dict[str, str] = {}
    skipped: list[harness.Row] = []
    for variant in variants(network):
        try:
            build()
            running[variant] = str(launch(lab, variant, folder / variant))
        except MpiError as error:
            reason = f"{LABELS[variant]} is not measured: {error}"
            print(f"collectives: {reason}", file=sys.stderr)
            row = {"case": variant, "network": network, "ranks": lab.world_size}
            skipped.append({**row, "skipped": reason})
    return running, skipped


class Remote:
    """One rank's line to the MPI process beside it."""

    def __init__(self, folder: str, rank: int) -> None:
        self._in = (pathlib.Path(folder) / f"in.{rank}").open("w")
        self._out = (pathlib.Path(folder) / f"out.{rank}").open("rb", buffering=0)

    def _ask(self, command: str) -> str:
        print(command, file=self._in, flush=True)
        answer = b""
        while not answer.endswith(b"\n"):
            if not select.select([self._out], [], [], ANSWER_S)[0]:
                raise TimeoutError(f"Open MPI: no answer to '{command}' in {ANSWER_S:.0f} s")
            part = self._out.read(256)
            if not part:
                raise ConnectionError(f"Open MPI: the process ended at '{command}'")
            answer += part
        return answer.decode().strip()

    def prepare(self, operation: str, size: int) -> bool:
        """Whether a first call of this case had the right result."""
        return self._ask(f"case {operation} {size}") == "right"

    def block(self, count: int) -> harness.Sample:
        """As harness.block; the process looks at its own clock and CPU time."""
        wire = harness.sent_bytes()
        seconds, cpu = self._ask(f"block {count}").split()
        sent = (harness.sent_bytes() - wire) / count
        return {"seconds": float(seconds), "cpu": float(cpu), "wire": sent}
