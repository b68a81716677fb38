"""Running ranks: exit codes, output, events, signals, reports, and that nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from lab_support import (
    holders,
    lab_environment,
    needs_namespaces,
    processes_with_mark,
    run_lab,
    start_lab,
    why_no_namespaces,
)
from waiting import DEADLINE_SECONDS, wait_until

from scant.lab import Lab, LabError, LinkOptions

# Where there are no namespaces the same promises hold on loopback.
MODES = ["loopback"] if why_no_namespaces() else ["auto", "loopback"]

pytestmark = pytest.mark.alone


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A word in the environment of every process of this test's lab."""
    word = f"SCANT_TEST_MARK={uuid.uuid4()}"
    monkeypatch.setenv(*word.split("="))
    return word


def gone(mark: str) -> bool:
    return not processes_with_mark(mark)


@pytest.mark.parametrize("mode", MODES)
def test_environment_of_the_ranks(mode: str, tmp_path: Path) -> None:
    done = run_lab(
        *("--mode", mode, "-n", "2", "--nproc-per-host", "2", "--rate", "8mbit", "--quiet", "--"),
        *("sh", "-c", 'env > "$1/$RANK"', "sh", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    found = []
    for rank in range(4):
        lines = (tmp_path / str(rank)).read_text().splitlines()
        found.append(dict(line.split("=", 1) for line in lines if "=" in line))
    for rank, env in enumerate(found):
        assert env["RANK"] == str(rank) and env["WORLD_SIZE"] == "4"
        assert env["LOCAL_RANK"] == str(rank % 2) and env["LOCAL_WORLD_SIZE"] == "2"
        assert env["GROUP_RANK"] == env["SCANT_LAB_HOST"] == str(rank // 2)
        assert env["MASTER_ADDR"] == found[0]["MASTER_ADDR"]
        assert env["MASTER_PORT"] == found[0]["MASTER_PORT"]
        assert env["GLOO_SOCKET_IFNAME"] == env["SCANT_INTERFACE"]
        assert env["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", "1")
        if mode == "loopback":
            assert env["SCANT_RATE_LIMIT"] == "500000"  # 8 Mb/s in bytes, for two ranks
            assert env["SCANT_LAB"] == "loopback"
        else:
            assert "SCANT_RATE_LIMIT" not in env


@pytest.mark.parametrize("mode", MODES)
def test_output_is_prefixed_and_placeholders_filled(mode: str) -> None:
    script = "printf 'a{rank}\\nb'; printf 'e{host}' >&2; printf x | tr x '\\377'"
    done = subprocess.run(
        [sys.executable, "-m", "scant.lab", "--mode", mode, "--quiet", "--", "sh", "-c", script],
        env=lab_environment(),
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0
    lines = sorted(done.stdout.splitlines())
    assert lines == [b"[0] a0", b"[0] b\xff", b"[1] a1", b"[1] b\xff"]
    assert {b"[0] e0", b"[1] e1"} <= set(done.stderr.splitlines())


@pytest.mark.parametrize("mode", MODES)
def test_exit_code_is_that_of_the_first_failing_rank(mode: str) -> None:
    script = 'if [ $RANK = 1 ]; then exit 7; fi; trap "" TERM; sleep 1; exit 3'
    done = run_lab("--mode", mode, "-n", "2", "--", "sh", "-c", script)
    assert done.returncode == 7, done.stderr
    done = run_lab("--mode", mode, "-n", "1", "--", "sh", "-c", "kill -SEGV $$")
    assert done.returncode == 128 + signal.SIGSEGV


@pytest.mark.parametrize("mode", MODES)
def test_a_failed_rank_stops_the_others_after_the_grace_time(mode: str, mark: str) -> None:
    script = 'if [ $RANK = 1 ]; then exit 5; fi; trap "" TERM; sleep 300; sleep 300'
    done = run_lab("--mode", mode, "--grace", "200ms", "--", "sh", "-c", script)
    assert done.returncode == 5
    assert gone(mark)


@pytest.mark.parametrize("mode", MODES)
def test_timeout(mode: str, mark: str) -> None:
    done = run_lab("--mode", mode, "--timeout", "300ms", "--", "sleep", "300")
    assert done.returncode == 124
    assert gone(mark)


@pytest.mark.parametrize("mode", MODES)
def test_orphans_of_ranks_do_not_survive(mode: str, mark: str) -> None:
    done = run_lab("--mode", mode, "--", "sh", "-c", "setsid sleep 300 & exit 0")
    assert done.returncode == 0
    assert gone(mark)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_ranks_and_tear_down(mode: str, number: int, mark: str) -> None:
    script = (
        "import os, signal, time\n"
        f"signal.signal({int(number)}, lambda *_: (print('told', flush=True), os._exit(9)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(300)\n"
    )
    lab = start_lab(["--mode", mode, "-n", "2", "--quiet", "--", sys.executable, "-c", script])
    assert lab.stdout is not None
    assert [lab.stdout.readline()[4:] for _ in range(2)] == ["ready\n"] * 2
    lab.send_signal(number)
    out, _ = lab.communicate(timeout=DEADLINE_SECONDS)
    assert sorted(out.split("\n")) == ["", "[0] told", "[1] told"]
    assert lab.returncode == 128 + number
    assert gone(mark)


@pytest.mark.parametrize("mode", MODES)
def test_second_interrupt_kills_deaf_ranks(mode: str, mark: str) -> None:
    script = 'trap "" INT; echo ready; sleep 300; sleep 300'
    lab = start_lab(["--mode", mode, "-n", "1", "--grace", "1h", "--", "sh", "-c", script])
    assert lab.stdout is not None and lab.stderr is not None
    lab.stdout.readline()
    lab.send_signal(signal.SIGINT)
    while "SIGINT" not in lab.stderr.readline():
        pass
    lab.send_signal(signal.SIGINT)
    lab.communicate(timeout=DEADLINE_SECONDS)
    assert lab.returncode == 130
    assert gone(mark)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("victim", ["owner", "guardian", "agent"])
def test_killed_lab_leaves_nothing(mode: str, victim: str, mark: str) -> None:
    """SIGKILL of any of the lab's processes ends the ranks, their orphans and the namespaces."""
    script = "setsid sleep 300 & readlink /proc/self/ns/net; sleep 300"
    lab = start_lab(["--mode", mode, "-n", "2", "--delay", "0", "--", "sh", "-c", script])
    assert lab.stdout is not None
    spaces = [lab.stdout.readline().split()[1] for _ in range(2)]
    target = lab.pid
    if victim != "owner":
        target = _child(lab.pid)
    if victim == "agent":
        target = _child(target)
    os.kill(target, signal.SIGKILL)
    lab.communicate(timeout=DEADLINE_SECONDS)
    assert lab.returncode != 0
    wait_until(lambda: gone(mark), "all processes gone")
    if mode != "loopback":
        own = str(Path("/proc/self/ns/net").readlink())
        for space in spaces:
            assert space != own
        wait_until(lambda: not any(map(holders, spaces)), f"{', '.join(spaces)} gone")


def _child(pid: int) -> int:
    children = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                children.append(int(folder.name))
    return min(children)


@needs_namespaces
def test_namespaces_vanish_after_a_normal_end(mark: str) -> None:
    done = run_lab("-n", "2", "--rate", "1gbit", "--", "readlink", "/proc/self/ns/net")
    assert done.returncode == 0
    spaces = [line.split()[1] for line in done.stdout.splitlines()]
    assert len(set(spaces)) == 2
    for space in spaces:
        wait_until(lambda space=space: not holders(space), f"{space} gone")  # type: ignore[misc]
    assert gone(mark)


@needs_namespaces
def test_main_namespace_stays_untouched() -> None:
    before = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    with Lab(2):
        during = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
        assert during.stdout == before


def test_scripted_kill_is_no_failure(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run_lab(
        *("-n", "2", "--at", "200ms kill 1", "--report", str(report), "--"),
        *("sh", "-c", "if [ $RANK = 1 ]; then sleep 300; else sleep 0.6; fi"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert [(r["exit_code"], r["ended_by_event"]) for r in found["ranks"]] == [
        (0, False),
        (-9, True),
    ]
    (event,) = found["events"]
    assert event["text"] == "200ms kill 1" and event["seconds"] >= 0.2


def test_stop_freezes_and_cont_thaws() -> None:
    script = (
        "import time; end = last = time.monotonic(); end += 1.5; gap = 0\n"
        "while last < end:\n"
        "    time.sleep(0.01); now = time.monotonic(); gap = max(gap, now - last); last = now\n"
        "print(gap >= 0.6)\n"
    )
    done = run_lab(
        *("-n", "2", "--quiet", "--at", "300ms stop 1", "1s cont 1", "--"),
        *(sys.executable, "-c", script),
    )
    assert done.returncode == 0
    assert "[1] True" in done.stdout.splitlines()


def test_run_ends_when_only_stopped_ranks_are_left(mark: str) -> None:
    script = "if [ $RANK = 1 ]; then sleep 300; fi; sleep 0.5"
    done = run_lab("--at", "100ms stop 1", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert gone(mark)


@needs_namespaces
def test_link_events_act_and_are_reported(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run_lab(
        *("-n", "2", "--rate", "100mbit", "--report", str(report)),
        *("--at", "100ms rate 1 10mbit", "200ms down 0", "--at", "300ms up 0", "--"),
        *("sh", "-c", "sleep 0.6; cat /sys/class/net/eth0/carrier"),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[0] 1", "[1] 1"]
    found = json.loads(report.read_text())
    assert [event["text"] for event in found["events"]] == [
        "100ms rate 1 10mbit",
        "200ms down 0",
        "300ms up 0",
    ]
    assert not any("error" in event for event in found["events"])
    assert [link["asked"]["up_bits_per_second"] for link in found["links"]] == [10**8, 10**8]
    assert [link["at_end"]["up_bits_per_second"] for link in found["links"]] == [10**8, 10**7]


@needs_namespaces
def test_report_schema(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("an older report")
    done = run_lab(
        *("-n", "2", "--rate", "100mbit", "--delay", "1ms", "--report", str(report)),
        *("--", "true"),
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    found = json.loads(report.read_text())
    assert found["schema"] == "scant-lab-report/1"
    documented = (Path(__file__).parents[3] / "docs" / "lab.md").read_text()
    keys = set(found)
    for link in found["links"]:
        keys |= set(link) | set(link["asked"]) | set(link["up"]) | set(link["relay"] or {})
    for rank in found["ranks"]:
        keys |= set(rank)
    for key in keys:
        assert f"`{key}`" in documented, f"{key} is not documented"
    assert found["hosts"] == 2 and len(found["links"]) == len(found["ranks"]) == 2
    assert found["links"][0]["asked"]["delay_seconds"] == 0.001
    assert found["seconds"] > 0 and found["exit_code"] == 0
    assert any("Ethernet" in note for note in found["notes"])


def test_report_path_is_checked_before_the_run(tmp_path: Path) -> None:
    started = tmp_path / "started"
    for path in (tmp_path / "absent" / "r.json", tmp_path):
        done = run_lab("--report", str(path), "--", "touch", str(started))
        assert done.returncode == 2
        assert "--report" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not started.exists()


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="a full disk is made with mount"
)
def test_full_disk_is_found_before_the_run(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    started = tmp_path / "started"
    script = (
        'mount -t tmpfs -o size=64k none "$1" && '
        '"$2" -m scant.lab --report "$1/r.json" -- touch "$3"; code=$?; ls -A "$1"; exit $code'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(disk), sys.executable, str(started)],
        env=lab_environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "No space left" in done.stderr and done.stdout == ""
    assert not started.exists()


def test_stats_lines() -> None:
    done = run_lab("--stats", "100ms", "--", "sleep", "0.5")
    lines = [line for line in done.stderr.splitlines() if " s  " in line]
    assert len(lines) >= 2, done.stderr


def test_closed_output_ends_the_run(mark: str) -> None:
    lab = start_lab(["-n", "1", "--quiet", "--", "yes"])
    assert lab.stdout is not None
    lab.stdout.readline()
    lab.stdout.close()
    assert lab.wait(DEADLINE_SECONDS) == 128 + signal.SIGPIPE
    assert lab.stderr is not None
    lab.stderr.close()
    assert gone(mark)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--rate", "0"], "--rate"),
        (["--rate", "5parsec"], "--rate"),
        (["-n", "0"], "-n"),
        (["-n", "two"], "-n"),
        (["--nproc-per-host", "0"], "--nproc-per-host"),
        (["--host", "7:rate=1mbit"], "--host"),
        (["--loss", "101%"], "--loss"),
        (["--loss", "1%", "--loss-burst", "p=1%,r=1%"], "--loss-burst"),
        (["--delay", "2"], "--delay"),
        (["--at", "1s fly 2"], "--at"),
        (["--at", "1s kill 9"], "--at"),
        (["--events", "/nonexistent"], "--events"),
        (["--seed", "-1"], "--seed"),
        (["--timeout", "soon"], "--timeout"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(arguments: list[str], name: str) -> None:
    done = run_lab(*arguments, "--", "true")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and name in done.stderr
    assert done.stdout == ""


def test_missing_command() -> None:
    assert run_lab("-n", "1").returncode == 2
    done = run_lab("-n", "1", "--", "no-such-program-anywhere")
    assert done.returncode == 127 and "no-such-program-anywhere" in done.stderr


def test_missing_tools_name_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="iproute2"):
        Lab(1)


def test_loopback_refuses_delay_and_loss() -> None:
    for arguments in (["--delay", "1ms"], ["--loss", "1%"], ["--at", "1s rate 0 1mbit"]):
        done = run_lab("--mode", "loopback", *arguments, "--", "true")
        assert done.returncode == 1 and "namespaces" in done.stderr


def _refused_namespaces(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``scant lab`` where neither root's nor a user's namespaces may be made."""
    script = (
        'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set -sys_admin "$@"'
    )
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
    return subprocess.run(
        [*command, sys.executable, *arguments],
        env=lab_environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def test_falls_back_to_loopback_with_a_notice() -> None:
    try:
        trial = _refused_namespaces("-c", "pass")
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename} is missing")
    if trial.returncode != 0:
        pytest.skip(f"a user namespace without further ones: {trial.stderr.strip()}")
    words = ("-m", "scant.lab", "-n", "1", "--rate", "8mbit")
    done = _refused_namespaces(*words, "--", "sh", "-c", "echo $SCANT_RATE_LIMIT")
    assert done.returncode == 0 and done.stdout == "[0] 1000000\n"
    assert "NOTICE" in done.stderr and "Operation not permitted" in done.stderr
    done = _refused_namespaces(*words, "--delay", "1ms", "--", "true")
    assert done.returncode == 1 and "--delay" in done.stderr


@needs_namespaces
def test_dead_relay_is_an_error_not_a_result() -> None:
    link = LinkOptions(rate_bits_per_second=10**8, delay_seconds=0.001)
    with Lab(2, link, delay_method="relay") as lab:
        assert lab.counters()[1].relay is not None
        agent = _child(lab.agent_pid)
        os.kill(_child(agent), signal.SIGKILL)

        def noticed() -> bool:
            try:
                lab.counters()
            except LabError as error:
                return "relay of host 0" in str(error)
            return False

        wait_until(noticed, "the dead relay noticed")


def test_check_and_clean() -> None:
    done = run_lab("--check")
    assert "network namespaces" in done.stdout
    assert done.returncode == (1 if why_no_namespaces() else 0)
    assert run_lab("--clean").returncode == 0


def test_api_reports_exit_codes_cpu_and_a_dead_agent() -> None:
    mode = MODES[0]
    with Lab(2, mode=mode) as lab:
        busy = "import time\nwhile time.process_time() < 0.1: pass\nraise SystemExit(4)"
        (process,) = lab.run([sys.executable, "-c", busy], ranks=[1])
        assert process.wait(DEADLINE_SECONDS) == 4
        assert process.cpu_user_seconds + process.cpu_system_seconds >= 0.1
        (process,) = lab.run(["sleep", "300"], ranks=[0])
        with pytest.raises(TimeoutError):
            process.wait(0.05)
        process.kill()
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
        with pytest.raises(LabError, match="no-such-program"):
            lab.run(["no-such-program"])
        (process,) = lab.run(["sleep", "300"], ranks=[0])
        os.kill(_child(lab.agent_pid), signal.SIGKILL)
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
        with pytest.raises(LabError, match="ended"):
            lab.run(["true"])
    with pytest.raises(LabError, match="closed"):
        lab.run(["true"])
