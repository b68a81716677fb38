"""Units, link settings, events and netlink replies: everything the lab reads from outside."""

from __future__ import annotations

import shlex
import signal
import struct
from pathlib import Path

import pytest

from scant.lab import LinkOptions, Loss, UsageError
from scant.lab.cli import main as lab_main
from scant.lab.events import parse_event, parse_events
from scant.lab.netlink import _counters
from scant.lab.options import (
    burst_for,
    change_link,
    parse_host_override,
    parse_hosts,
    parse_loss_burst,
    super_frame_for,
)
from scant.lab.report import end_table
from scant.lab.units import (
    format_duration,
    format_rate,
    parse_delay,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("1gbit", 10**9),
        ("100mbit", 10**8),
        ("0.5Mbit", 500_000),
        ("8000bit", 8000),
        ("1mibit", 1 << 20),
        ("10mbps", 80_000_000),
        (" 5 kbps ", 40_000),
    ],
)
def test_rate(text: str, bits: int) -> None:
    assert parse_rate(text) == bits


@pytest.mark.parametrize("text", ["0", "0mbit", "1", "1foo", "-1mbit", "", "mbit", "1e9bit", "nan"])
def test_bad_rate_names_the_argument(text: str) -> None:
    with pytest.raises(UsageError, match=r"--rate"):
        parse_rate(text)


def test_rate_bounds() -> None:
    for text in ("7999bit", "101gbit"):
        with pytest.raises(UsageError, match="outside"):
            parse_rate(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2ms", 0.002), ("0", 0.0), ("1.5s", 1.5), ("250us", 0.00025), ("2min", 120)],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text, "--x") == pytest.approx(seconds)


def test_delay_bound() -> None:
    assert parse_delay("10s") == 10
    with pytest.raises(UsageError, match="--delay"):
        parse_delay("11s")


@pytest.mark.parametrize(
    ("text", "share"), [("0.1%", 0.001), ("100%", 1.0), ("0.25", 0.25), ("0", 0)]
)
def test_share(text: str, share: float) -> None:
    assert parse_share(text, "--loss") == pytest.approx(share)


@pytest.mark.parametrize("text", ["101%", "1.5", "5x", "%", "-1%"])
def test_bad_share(text: str) -> None:
    with pytest.raises(UsageError, match="--loss"):
        parse_share(text, "--loss")


@pytest.mark.parametrize(
    ("text", "better"), [("5", "5% or 0.05"), ("1.5", "1.5% or 0.015"), ("100", "100% or 1")]
)
def test_share_without_a_sign_gets_a_hint(text: str, better: str) -> None:
    with pytest.raises(UsageError, match=rf"^--loss: '{text}' is above 1; write {better}$"):
        parse_share(text, "--loss")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("-n 2 --rate 1gbit echo hi", "put -- before the command: scant lab [options] -- echo hi"),
        ("echo -n 2 'a b'", "-- echo 'a b'"),  # -n went to the lab: before the -- it is the lab's
        ("-n 2 --speed 1gbit", "'--speed' is not an option"),
        ("--speed 1gbit -- echo", "'--speed' is not an option"),
        ("-n 2 echo -- hi", "'echo' is not an option"),
        ("-n 2", "COMMAND is missing"),
    ],
)
def test_misplaced_words_of_the_command_line(
    line: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab_main(shlex.split(line)) == 2
    assert hint in capsys.readouterr().err


def test_table_says_what_its_means_are_over() -> None:
    link = {"host": 0, "up": {"bytes": 1e6, "dropped_packets": 0}}
    ranks = [{"host": 0, "exit_code": 0}]
    text = end_table({"seconds": 8.0, "exit_code": 0, "links": [link], "ranks": ranks})
    assert "1 Mb/s" in text  # 8 Mb in the 8 seconds of the run
    assert text.endswith("means are over the whole run, start of the ranks included")


def test_size_and_formats() -> None:
    assert parse_size("512kb", "--queue") == 512_000
    assert parse_size("1MiB", "--queue") == 1 << 20
    assert format_rate(9.5e8) == "950 Mb/s"
    assert format_rate(0) == "0 b/s"
    assert format_duration(0.0021) == "2.1 ms"


def test_hosts() -> None:
    assert parse_hosts("all", 3, "x") == [0, 1, 2]
    assert parse_hosts("0,2", 3, "x") == [0, 2]
    assert parse_hosts("1-2,1", 3, "x") == [1, 2]
    for text in ("3", "2-1", "a", "", "-1", "0-3", "1,,2", "²"):
        with pytest.raises(UsageError, match=r"^x"):
            parse_hosts(text, 3, "x")


def test_host_override_changes_only_what_it_names() -> None:
    hosts, settings = parse_host_override("2:rate=100mbit,delay=10ms", 4)
    assert hosts == [2]
    link = change_link(LinkOptions(queue_bytes=50_000), settings, "--host")
    assert (link.up, link.down, link.delay_seconds, link.queue_bytes) == (
        10**8,
        10**8,
        0.01,
        50_000,
    )
    link = change_link(link, ["up=1mbit", "loss=2%"], "--host")
    assert (link.up, link.down, link.loss.mean) == (10**6, 10**8, 0.02)
    link = change_link(link, ["p=1%", "r=50%"], "--host")
    assert link.loss.to_bad == 0.01


@pytest.mark.parametrize(
    "settings", [["rate"], ["foo=1"], ["loss=1%", "p=1%", "r=1%"], ["queue=100b"], ["p=1%"]]
)
def test_bad_link_settings(settings: list[str]) -> None:
    with pytest.raises(UsageError):
        change_link(LinkOptions(), settings, "--host")


def test_gilbert_elliott() -> None:
    loss = parse_loss_burst("p=1%,r=9%")
    assert loss.mean == pytest.approx(0.1)
    assert parse_loss_burst("p=1%,r=9%,bad=50%").mean == pytest.approx(0.05)
    for text in ("p=1%", "r=1%", "p=1%,r=0", "p=1%,r=10%,x=1", "p"):
        with pytest.raises(UsageError):
            parse_loss_burst(text)
    with pytest.raises(UsageError):
        Loss(good=float("nan"))


def test_bucket_always_holds_a_largest_frame() -> None:
    """A frame above the bucket would never pass the shaper, or be split again."""
    rate = 8000
    while rate <= 10**11:
        assert burst_for(rate) >= super_frame_for(rate) + 1514
        assert burst_for(rate) - 3 * 1514 <= rate / 8 * 0.0003 + 1  # stated in the docs
        assert LinkOptions().queue_for(rate) > super_frame_for(rate)
        rate *= 2


def test_events() -> None:
    event = parse_event("5s rate 2 100mbit", 4, 4)
    assert (event.at_seconds, event.targets, event.settings) == (5, (2,), ("rate=100mbit",))
    assert parse_event("9s loss 5%", 3, 3).targets == (0, 1, 2)
    assert parse_event("1s loss-burst 0 p=1%,r=10%", 3, 3).settings == ("p=1%", "r=10%")
    assert parse_event("1s kill 5", 3, 6).signal == signal.SIGKILL
    assert parse_event("1s signal all usr1", 3, 6).signal == signal.SIGUSR1
    assert parse_event("13s down 2", 3, 3).plugged is False
    assert parse_event("14s up 2", 3, 3).plugged is True
    assert parse_event("1s up-rate 2 1mbit", 3, 3).settings == ("up=1mbit",)


@pytest.mark.parametrize(
    "text",
    [
        "5s",
        "rate 2 100mbit",
        "5s fly 2",
        "5s rate 9 1mbit",
        "5s rate 1 1parsec",
        "5s rate",
        "5s kill 3",
        "5s kill",
        "5s kill 1 2",
        "5s signal 1 SIGNOPE",
        "5s down",
        "5s loss 200%",
        "-1s kill 1",
    ],
)
def test_bad_events_are_refused_before_the_run(text: str) -> None:
    with pytest.raises(UsageError, match="--at"):
        parse_event(text, 3, 3)


def test_event_file(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text("# a comment\n2s kill 1\n\n1s rate 1mbit  # sooner\n")
    events = parse_events(["1s stop 0"], str(path), 2, 2)
    assert [event.text for event in events] == ["1s stop 0", "1s rate 1mbit", "2s kill 1"]
    path.write_text("1s kill 1\n1s nothing\n")
    with pytest.raises(UsageError, match="line 2"):
        parse_events([], str(path), 2, 2)
    with pytest.raises(UsageError, match="--events"):
        parse_events([], str(tmp_path / "absent"), 2, 2)


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def test_netlink_counters() -> None:
    basic = _attribute(1, struct.pack("=QI", 5_000_000_000, 7))
    queue = _attribute(3, struct.pack("=IIIII", 2, 300, 11, 0, 0))
    found = _counters(_attribute(7, basic + queue))
    assert (found.bytes, found.packets) == (5_000_000_000, 7)
    assert (found.backlog_bytes, found.dropped_packets) == (300, 11)
    wide = _attribute(8, struct.pack("=Q", 1 << 40))
    assert _counters(_attribute(7, basic + wide)).packets == 1 << 40
    for broken in (b"\x02\x00\x07\x00", b"\xff\x00\x07\x00" + bytes(8)):
        with pytest.raises(OSError, match="malformed"):
            _counters(broken)
