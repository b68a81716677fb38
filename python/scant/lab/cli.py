"""The command ``scant lab``: arguments, the run, the report. See docs/lab.md."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn

from scant.lab import clean, machine, selftest
from scant.lab.errors import LabError, UsageError
from scant.lab.events import Event, parse_events
from scant.lab.lab import Lab
from scant.lab.options import (
    HOSTS_MAX,
    LinkOptions,
    Loss,
    change_link,
    parse_host_override,
    parse_loss_burst,
)
from scant.lab.report import ReportFile, build_report, end_table, text_table
from scant.lab.runner import Runner, RunOptions
from scant.lab.units import parse_delay, parse_duration, parse_rate, parse_share, parse_size

EXIT_USAGE = 2
EXIT_LAB = 1
EXIT_NOT_FOUND = 127
EXIT_INTERRUPTED = 130

_EPILOG = """examples:
  scant lab -n 4 --rate 1gbit --delay 2ms --loss 0.1% -- python train.py
  scant lab -n 4 --rate 100mbit --host 2:rate=10mbit --at '8s kill 3' -- ./worker --rank {rank}
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scant lab",
        description="Run a command as ranks on N hosts with shaped links, in this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="scant lab [options] -- COMMAND…",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-n", "--hosts", default="2", metavar="N", help="number of hosts (2)")
    add("--nproc-per-host", default="1", metavar="K", help="ranks on each host (1)")
    links = parser.add_argument_group("links, for every host")
    add = links.add_argument
    add("--rate", metavar="RATE", help="both directions, as 1gbit or 100mbit; none: unshaped")
    add("--up", metavar="RATE", help="what a host sends, instead of --rate")
    add("--down", metavar="RATE", help="what a host receives, instead of --rate")
    add("--delay", metavar="TIME", help="added to every frame that a host sends, as 2ms")
    add("--loss", metavar="SHARE", help="of the frames that a host sends, as 0.1%%")
    add("--loss-burst", metavar="p=…,r=…", help="Gilbert–Elliott: chance into, out of, bad state")
    add("--queue", metavar="SIZE", help="in front of each shaper, as 512kb (20 ms of the rate)")
    add(
        "--host",
        action="append",
        default=[],
        metavar="HOSTS:key=value,…",
        help="other settings for some hosts, as 2:rate=100mbit,delay=10ms",
    )
    add("--ipv6", action="store_true", help="IPv6 addresses instead of IPv4")
    add("--seed", default="1", metavar="N", help="of the loss decisions (1)")
    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--at", action="append", nargs="+", default=[], metavar="EVENT", help="'5s rate 2 10mbit'")
    add("--events", metavar="FILE", help="events, one a line")
    add("--timeout", metavar="TIME", help="stop the ranks after TIME; exit code 124")
    add("--grace", default="10s", metavar="TIME", help="before ranks asked to end are killed (10s)")
    add(
        "--on-failure",
        choices=("stop", "wait"),
        default="stop",
        help="when a rank fails: stop the others after the grace time, or wait for them",
    )
    add("--stats", metavar="TIME", help="print bytes and rates this often, as 1s")
    add("--report", metavar="FILE", help="write bytes per link and more as JSON")
    add("--quiet", action="store_true", help="no table at the end")
    how = parser.add_argument_group("machine")
    add = how.add_argument
    add("--mode", choices=("auto", "root", "user", "loopback"), default="auto")
    add("--shaper", choices=("auto", "tbf", "htb"), default="auto")
    add("--delay-method", choices=("auto", "netem", "relay"), default="auto")
    add("--check", action="store_true", help="print what this machine can do")
    add("--selftest", action="store_true", help="measure a link against what was asked")
    add("--clean", action="store_true", help="end labs whose owner is gone")
    return parser


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options and, after the first ``--``, the command; a command without ``--`` gets a hint."""
    command: list[str] = []
    divided = "--" in words
    if divided:
        at = list(words).index("--")
        words, command = words[:at], list(words[at + 1 :])
    arguments, rest = _parser().parse_known_args(words)
    if rest and (rest[0].startswith("-") or divided):
        raise UsageError(f"{rest[0]!r} is not an option; --help lists them")
    if rest:
        shown = shlex.join(rest)
        raise UsageError(f"put -- before the command: scant lab [options] -- {shown}")
    return arguments, command


def _whole(text: str, name: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise UsageError(f"{name}: {text!r} is not a whole number") from error
    if not low <= value <= high:
        raise UsageError(f"{name}: {value} is outside {low} to {high}")
    return value


def _links(arguments: argparse.Namespace, hosts: int) -> list[LinkOptions]:
    if arguments.loss is not None and arguments.loss_burst is not None:
        raise UsageError("--loss and --loss-burst exclude each other")
    loss = Loss()
    if arguments.loss is not None:
        loss = Loss.uniform(parse_share(arguments.loss, "--loss"))
    elif arguments.loss_burst is not None:
        loss = parse_loss_burst(arguments.loss_burst)
    common = LinkOptions(
        rate_bits_per_second=parse_rate(arguments.rate) if arguments.rate else None,
        up_bits_per_second=parse_rate(arguments.up, "--up") if arguments.up else None,
        down_bits_per_second=parse_rate(arguments.down, "--down") if arguments.down else None,
        delay_seconds=parse_delay(arguments.delay) if arguments.delay else 0.0,
        loss=loss,
        queue_bytes=parse_size(arguments.queue, "--queue") if arguments.queue else None,
    )
    links = [common] * hosts
    for text in arguments.host:
        chosen, settings = parse_host_override(text, hosts)
        for host in chosen:
            links[host] = change_link(links[host], settings, f"--host {text}")
    return links


@dataclasses.dataclass(frozen=True)
class _Plan:
    hosts: int
    processes_per_host: int
    links: list[LinkOptions]
    events: list[Event]
    options: RunOptions
    seed: int


def _plan(arguments: argparse.Namespace) -> _Plan:
    hosts = _whole(arguments.hosts, "-n", 1, HOSTS_MAX)
    processes = _whole(arguments.nproc_per_host, "--nproc-per-host", 1, 1024)
    texts = [text for group in arguments.at for text in group]
    events = parse_events(texts, arguments.events, hosts, hosts * processes)
    stats = parse_duration(arguments.stats, "--stats") if arguments.stats else None
    if stats is not None and stats < 0.01:
        raise UsageError(f"--stats: {arguments.stats!r} is below 10ms")
    timeout = parse_duration(arguments.timeout, "--timeout") if arguments.timeout else None
    options = RunOptions(
        events=events,
        stats_seconds=stats,
        stop_on_failure=arguments.on_failure == "stop",
        grace_seconds=parse_duration(arguments.grace, "--grace"),
        timeout_seconds=timeout,
    )
    seed = _whole(arguments.seed, "--seed", 0, 2**63 - 1)
    return _Plan(hosts, processes, _links(arguments, hosts), events, options, seed)


def _find_command(command: Sequence[str]) -> None:
    if not command:
        raise UsageError("COMMAND is missing: scant lab [options] -- COMMAND…")
    if "{" not in command[0] and shutil.which(command[0]) is None:
        raise FileNotFoundError(f"COMMAND: {command[0]!r} was not found or cannot be executed")


def _open_lab(arguments: argparse.Namespace, plan: _Plan) -> Lab:
    def build(mode: str) -> Lab:
        return Lab(
            plan.hosts,
            plan.links,
            mode=mode,
            ipv6=arguments.ipv6,
            seed=plan.seed,
            processes_per_host=plan.processes_per_host,
            shaper=arguments.shaper,
            delay_method=arguments.delay_method,
        )

    if arguments.mode != "loopback":
        try:
            return build(arguments.mode)
        except LabError as error:
            if arguments.mode != "auto" or not str(error).startswith("no network namespaces"):
                raise
            _say(f"{error}")
            _say("run as root, or allow user namespaces (user.max_user_namespaces; on Ubuntu also")
            _say("kernel.apparmor_restrict_unprivileged_userns=0), for shaped links")
    shaped = any(link.delay_seconds or link.loss.mean for link in plan.links)
    if shaped or any(event.needs_isolation() for event in plan.events):
        raise LabError(
            "--delay, --loss and link events need network namespaces (root or a user namespace); "
            "without them only --rate works, in Scant's own transport"
        )
    _say("NOTICE: running on loopback; --rate is applied by Scant's transport (SCANT_RATE_LIMIT)")
    return build("loopback")


def _say(text: str) -> None:
    print(f"[lab] {text}", file=sys.stderr, flush=True)


def _run(arguments: argparse.Namespace, command: list[str]) -> int:
    plan = _plan(arguments)
    _find_command(command)
    report_file = ReportFile(arguments.report) if arguments.report else None
    try:
        with _open_lab(arguments, plan) as lab:
            first_links = list(lab.links)
            _rehearse(lab, plan.events)
            if not arguments.quiet:
                _describe(lab)
            runner = Runner(lab, plan.options)
            code = runner.run(command)
            report = build_report(
                lab,
                first_links,
                runner.counters,
                command,
                runner.seconds,
                code,
                runner.applied,
                runner.ended_by_event,
            )
        if not arguments.quiet and lab.isolated:
            print(end_table(report), file=sys.stderr, flush=True)
        if report_file is not None:
            try:
                report_file.finish(report)
            except OSError as error:
                _say(f"--report {arguments.report}: {error.strerror}")
                return code or EXIT_LAB
        return code
    finally:
        if report_file is not None:
            report_file.abandon()


def _rehearse(lab: Lab, events: Sequence[Event]) -> None:
    """Refuse before the run what an event would ask in vain during it."""
    links = list(lab.links)
    for event in events:
        if event.settings:
            for host in event.targets:
                links[host] = change_link(links[host], event.settings, event.text)
                lab.check_link(links[host])


def _describe(lab: Lab) -> None:
    if not lab.isolated:
        return
    groups: dict[str, list[int]] = {}
    for host, link in enumerate(lab.links):
        groups.setdefault(link.describe(), []).append(host)
    links = "; ".join(
        f"{text}" + (f" (host {','.join(map(str, hosts))})" if len(groups) > 1 else "")
        for text, hosts in groups.items()
    )
    method = ""
    if any(link.delay_seconds for link in lab.links):
        method = f", delay by {lab.methods.delay}"
    _say(f"{lab.hosts} hosts: {links} ({lab.mode}, {lab.methods.shaper}{method})")


def _check() -> int:
    findings, usable = machine.examine()
    rows = [[f.name, "yes" if f.present else "no", f.meaning] for f in findings]
    width = max(len(row[0]) for row in rows)
    for name, present, meaning in rows:
        print(f"{name:<{width}}  {present:<3}  {meaning}")
    return 0 if usable else EXIT_LAB


def _selftest(arguments: argparse.Namespace) -> int:
    arguments.hosts = "2"
    if not arguments.rate and not arguments.up and not arguments.down:
        arguments.rate = "100mbit"
    link = _links(arguments, 2)[0]
    measured = selftest.measure(link, ipv6=arguments.ipv6, mode=arguments.mode)
    print(text_table(["", "asked", "measured", "ratio"], measured.rows()))
    return 0 if measured.good() else EXIT_LAB


def main(argv: Sequence[str] | None = None) -> int:
    """``scant lab``; returns the exit code."""
    try:
        arguments, command = _parse(sys.argv[1:] if argv is None else argv)
        if arguments.check:
            return _check()
        if arguments.clean:
            return clean.sweep()
        if arguments.selftest:
            return _selftest(arguments)
        return _run(arguments, command)
    except UsageError as error:
        print(f"scant lab: {error}", file=sys.stderr)
        return EXIT_USAGE
    except FileNotFoundError as error:
        print(f"scant lab: {error}", file=sys.stderr)
        return EXIT_NOT_FOUND
    except LabError as error:
        print(f"scant lab: {error}", file=sys.stderr)
        return EXIT_LAB
    except KeyboardInterrupt:  # before the ranks ran; later the runner passes it on
        return EXIT_INTERRUPTED
