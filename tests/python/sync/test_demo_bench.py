"""The demo and the benchmark, run small, so that they cannot rot."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import sys
from typing import Any

import pytest
from programs import ROOT, run

from scant.demo import training
from scant.demo.summary import Demo, Run, build_page, headline, table
from scant.demo.tuning import fastest, most_faithful
from scant.lab import Lab, LinkOptions


@pytest.fixture(autouse=True)
def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")


def test_demo_trains_every_way_to_the_same_loss(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    names = ["gloo", "gloo fp16", "PowerSGD", "scant", "scant.wrap"]
    done = run(
        *("-m", "scant.demo", "--ranks", "2", "--steps", "6", "--rate", "1gbit"),
        *("--ways", *names, "--out", str(out)),
    )
    assert done.returncode == 0, done.stderr
    assert "no tuning: --steps 6 is below 20" in done.stderr
    recorded = json.loads((out / "demo.json").read_text())
    runs = dict(zip(names, recorded["runs"], strict=True))
    assert [entry["backend"] for entry in recorded["runs"]] == names
    assert (recorded["bucket"], recorded["rank"]) == (None, None)
    # What is not sent at once is paid back later: PowerSGD's from its third step on, the
    # planner's from its first choice on.
    tolerances = {"gloo fp16": 2e-3, "PowerSGD": 5e-2, "scant": 1e-3, "scant.wrap": 2e-2}
    for name, entry in runs.items():
        losses = [row["loss"] for row in entry["rows"]]
        assert losses == pytest.approx(
            [row["loss"] for row in runs["gloo"]["rows"]], rel=tolerances.get(name, 0)
        )
        assert len(losses) == 6
        assert losses[-1] < losses[0]
    # Two ranks: the gradient once each way, 12.8 MB a step; DDP's start and headers come on top.
    for name, bytes_a_step in (("gloo", 12.8e6), ("gloo fp16", 6.4e6), ("scant", 12.8e6)):
        for sent in runs[name]["sent_bytes"]:
            assert 6 * bytes_a_step < sent < (6 * bytes_a_step + 3 * 12.8e6) * 1.1
    assert (out / "report.html").read_text().startswith("<!doctype html>")


# Takes the script's options; a step's time follows from them alone.
STEPPER = """
import argparse, json, os, statistics
parser = argparse.ArgumentParser()
for name in ("backend", "average", "log", "run-log"):
    parser.add_argument("--" + name)
parser.add_argument("--bucket-mb", type=int, default=0)
for name in ("steps", "window"):
    parser.add_argument("--" + name, type=int)
parser.add_argument("--until", type=float, default=0.0)
options = parser.parse_args()
step_s = {0: 0.5, 1: 0.6, 5: 0.3, 25: 0.4}[options.bucket_mb]
ranks = {"powersgd-2": 0.1, "powersgd-4": 0.12, "powersgd-8": 0.109,
         "powersgd-16": 0.2}
step_s = ranks.get(options.average, step_s)
if os.environ["RANK"] == "0":
    with open(options.log, "w") as log:
        losses = []
        for step in range(options.steps):
            losses.append(5 - step / 50)
            row = {"step": step, "loss": losses[-1], "wall_s": step_s * (step + 1)}
            row["step_s"] = 9.0 if step < 3 else step_s
            print(json.dumps(row), file=log)
            if statistics.fmean(losses[-(options.window or 1):]) <= options.until:
                break
        print(json.dumps({"cpu_s": 1.0}), file=log)
"""


@pytest.mark.parametrize("options", [(), ("--no-tuning",)])
def test_demo_tunes_buckets_and_rank_in_the_lab(
    tmp_path: pathlib.Path, options: tuple[str, ...]
) -> None:
    script = tmp_path / "steps.py"
    script.write_text(STEPPER)
    out = tmp_path / "out"
    done = run(
        *("-m", "scant.demo", "--ranks", "2", "--steps", "20", *options),
        *("--ways", "gloo", "gloo fp16", "PowerSGD", "scant", "scant.wrap"),
        *("--script", str(script), "--out", str(out)),
    )
    assert done.returncode == 0, done.stderr
    recorded = json.loads((out / "demo.json").read_text())
    # The loss that gloo has after 16 of its steps ends the others.
    assert [len(entry["rows"]) for entry in recorded["runs"]] == [20, 16, 16, 16, 16]
    steps_s = [entry["rows"][-1]["step_s"] for entry in recorded["runs"]]
    sizes = [entry["size"] for entry in recorded["runs"]]
    if options:
        assert (recorded["bucket"], recorded["rank"]) == (None, None)
        assert steps_s == [0.5, 0.5, 0.12, 0.5, 0.5]
        assert sizes == ["torch's", "torch's", "rank 4", "torch's", "–"]
        assert "no tuning: --no-tuning" in done.stderr
        return
    assert recorded["bucket"]["step_s"] == [[5, 0.3], [25, 0.4]]
    assert recorded["rank"]["step_s"] == [[2, 0.1], [4, 0.12], [8, 0.109], [16, 0.2]]
    assert steps_s == [0.3, 0.3, 0.109, 0.3, 0.5]
    assert sizes == ["5 MB", "5 MB", "rank 8", "5 MB", "–"]
    assert "Rank of PowerSGD – 2: 100 ms" in (out / "report.html").read_text()


def test_the_largest_rank_within_a_tenth_of_the_fastest_is_taken() -> None:
    assert most_faithful({1: 1.0, 2: 0.9, 4: 0.98, 8: 1.5, 16: 0.995}) == 4
    assert most_faithful({1: 1.0, 2: 1.09, 4: 1.2, 8: 1.09, 16: 1.11}) == 8
    assert most_faithful({1: 1.0, 16: 0.5}) == 16
    assert fastest({1: 0.6, 5: 0.59, 25: 0.7}) == 5


def test_a_line_of_progress_fits_and_keeps_its_end() -> None:
    row = {"step": 6, "loss": 3.25, "step_s": 0.4, "wall_s": 3.0}
    parts = training.progress_parts(Run("scant.wrap", [row]), 40, [90_000_000], 2.5)
    whole = "scant.wrap  step 7  loss 3.250 of 2.500    400 ms a step      90.0 MB sent by a host"
    assert training.fitting(parts, len(whole)) == whole
    assert training.fitting(parts, len(whole) - 1).endswith("ms a step")
    assert training.fitting(parts, 45).endswith("loss 3.250 of 2.500")
    assert training.fitting(parts, 20) == "scant.wrap  step 7"
    assert training.fitting(parts, 5) == "scant"
    assert training.fitting(parts[:1] + parts[4:], 14) == "scant.wrap"


def test_progress_says_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    progress = training.Progress()
    for last in (False, False, True):
        progress.show([(1, "starting")], last)
    assert capsys.readouterr().err == "starting\n"


@pytest.mark.parametrize("first", ["gloo", "PowerSGD", "scant.wrap"])
def test_the_headline_names_whoever_is_first(first: str) -> None:
    def descent(name: str) -> Run:
        step_s = 0.5 if name == first else 1.0
        rows = [
            {"step": i, "loss": 5 - i / 50, "step_s": step_s, "wall_s": step_s * (i + 1)}
            for i in range(20)
        ]
        return Run(name, rows, [], 1.0, size="rank 4" if name == "PowerSGD" else "–")

    demo = Demo(runs=[descent(name) for name in ("gloo", "PowerSGD", "scant.wrap")])
    said = headline(demo)
    assert said.startswith(f"{first} ")
    assert ("2.0 times as fast as gloo (16 s)" in said) == (first != "gloo")
    page = build_page(demo).html()
    assert said in page
    bold = re.findall(r'<text class="first"[^>]*>([^<]*)<', page)
    assert bold[0] == first
    assert headline(Demo(runs=demo.runs[:1])).startswith("Below 20 steps, or of one way alone")


@pytest.mark.parametrize("steps", [1, 3])
def test_demo_of_few_steps_claims_no_step_time(steps: int) -> None:
    rows = [
        {"step": i, "loss": 3.0, "step_s": 0.5, "wall_s": 0.5 * (i + 1)} for i in range(steps + 1)
    ]
    runs = [Run("gloo", rows[:steps], [], 2.0), Run("scant", rows[:steps], [], 1.0)]
    shown = {row[0]: row[1:] for row in table(Demo(runs=runs))[1]}
    assert shown["step, median, ms"] == shown["step, quartiles, ms"] == ["–", "–"]
    assert shown["step time, gloo ÷ this"] == ["–", "–"]
    assert shown["CPU a step, gloo ÷ this"] == ["1.00×", "2.00×"]
    build_page(Demo("two hosts", runs=runs))
    runs[1].rows = rows[:1] * 4  # a fourth step counts
    shown = {row[0]: row[1:] for row in table(Demo(runs=runs))[1]}
    assert shown["step, median, ms"] == ["–", "500"]
    assert shown["step, quartiles, ms"] == ["–", "500–500"]
    assert shown["step time, gloo ÷ this"] == ["–", "–"]


def test_rate_is_of_an_average_host_between_the_first_step_and_the_last() -> None:
    class Hosts:
        isolated = True
        sent = (1_000_000, 3_000_000)

        def bytes(self) -> list[tuple[int, int]]:
            return [(sent, 0) for sent in self.sent]

    lab: Any = Hosts()
    counters = training.Counters(lab)
    assert counters.mb_per_s() is None
    for now, sent in ((10.0, (50e6, 30e6)), (11.0, (55e6, 35e6)), (14.0, (70e6, 90e6))):
        lab.sent = sent
        counters.mark(now, counters.sent())
    # A mean of 40 MB at 10 s, of 80 MB at 14 s.
    assert counters.mb_per_s() == pytest.approx(10.0)


def test_demo_refuses_an_unwritable_folder_before_it_trains(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("-m", "scant.demo", "--out", str(tmp_path / "file" / "out"), timeout=60)
    assert done.returncode == 1
    assert str(tmp_path / "file") in done.stderr


def test_demo_names_the_rank_that_fails(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import sys; sys.exit('no model today')")
    done = run(
        "-m", "scant.demo", "--ranks", "2", "--script", str(script), "--out", str(tmp_path / "out")
    )
    assert done.returncode == 1
    assert "failed" in done.stderr
    assert "no model today" in done.stderr


def test_demo_keeps_a_training_whose_rank_fails_while_leaving(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "leaves.py"
    script.write_text(
        "import os, runpy, sys\n"
        f"runpy.run_path({str(ROOT / 'examples' / 'char_transformer.py')!r}, run_name='__main__')\n"
        "sys.exit(3 if os.environ['RANK'] == '1' else 0)\n"
    )
    out = tmp_path / "out"
    done = run(
        *("-m", "scant.demo", "--ranks", "2", "--steps", "4", "--ways", "gloo", "scant"),
        *("--script", str(script), "--out", str(out)),
    )
    assert done.returncode == 0, done.stderr
    assert "rank 1 failed while leaving, after all steps" in done.stderr
    assert (out / "report.html").exists()


def test_demo_keeps_a_training_whose_ranks_do_not_leave(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "stays.py"
    script.write_text(STEPPER + "import signal; signal.pause()\n")
    monkeypatch.setattr(training, "LEAVE_S", 0.0)
    with Lab(2) as lab:
        kept = training.train(lab, "stays", [str(script)], 4, tmp_path)
    assert (len(kept.rows), kept.whole) == (4, True)
    said = capsys.readouterr().err
    assert all(f"stays: rank {rank} does not leave, after all steps" in said for rank in (0, 1))


def test_benchmark_of_collectives_writes_rows_and_a_table(tmp_path: pathlib.Path) -> None:
    done = run("bench/sync/collectives.py", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "collectives.jsonl").read_text().splitlines()]
    # A machine without Open MPI has a row that says so.
    rows = [row for row in rows if "skipped" not in row]
    assert {(row["case"], row["bytes"]) for row in rows} == {
        (case, size) for case in ("all_reduce", "broadcast") for size in (1 << 10, 1 << 20)
    }
    for row in rows:
        assert len(row["gloo"]["samples"]) == len(row["scant"]["samples"]) == 2
        assert row["gloo"]["ratio"] == sorted(row["gloo"]["ratio"])
    assert "gloo ÷ scant" in (tmp_path / "collectives.md").read_text()
    page = (tmp_path / "collectives.html").read_text()
    for needed in ('class="one"', "1 KiB", "gloo ÷ scant (quartiles)", 'id="rows"'):
        assert needed in page


def small_collectives(out: pathlib.Path, network: str) -> list[dict[str, Any]]:
    """Every collective once, 4 KiB on three ranks: a size that three does not divide."""
    operations = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all")
    size = 4096
    done = run(
        *("bench/sync/collectives.py", "--quick", "--ranks", "3", "--networks", network),
        *("--sizes", str(size), "--operations", *operations, "--out", str(out)),
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "collectives.jsonl").read_text().splitlines()]
    assert [row["case"] for row in rows if "skipped" not in row] == list(operations)
    return rows


@pytest.mark.skipif(
    not (shutil.which("mpicxx") and shutil.which("mpirun")),
    reason="no Open MPI (Debian: openmpi-bin, libopenmpi-dev)",
)
@pytest.mark.parametrize(
    ("network", "variants"), [("loopback", ["mpi_tcp", "mpi_default"]), ("1gbit", ["mpi_tcp"])]
)
def test_open_mpi_takes_part_in_every_collective(
    tmp_path: pathlib.Path, network: str, variants: list[str]
) -> None:
    rows = small_collectives(tmp_path, network)
    for row in rows:
        assert "skipped" not in row, row
        for variant in variants:
            assert len(row[variant]["samples"]) == 2
            assert row[variant]["ratio"] == sorted(row[variant]["ratio"])
            if network != "loopback":  # it went through the shaped links, not around them
                assert row[variant]["wire_bytes_per_rank"] >= row["formula_bytes_per_rank"]
    head = (tmp_path / "collectives.md").read_text().splitlines()[0]
    assert all(f"{variant} ÷ scant" in head for variant in variants)


def test_benchmark_without_open_mpi_says_so_and_goes_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for tool in pathlib.Path(folder).glob("*"):
            if not tool.name.startswith("mpi") and not (tools / tool.name).is_symlink():
                (tools / tool.name).symlink_to(tool)
    monkeypatch.setenv("PATH", str(tools))
    rows = small_collectives(tmp_path / "out", "loopback")
    skipped = [row for row in rows if "skipped" in row]
    assert [row["case"] for row in skipped] == ["mpi_tcp", "mpi_default"]
    table = (tmp_path / "out" / "collectives.md").read_text()
    for row in skipped:
        assert "no mpicxx" in row["skipped"]
        assert row["skipped"] in table


def test_benchmark_of_a_training_step_compares_equal_trainings(tmp_path: pathlib.Path) -> None:
    out = str(tmp_path)
    done = run("bench/sync/ddp_step.py", "--quick", "--networks", "unshaped", "--out", out)
    assert done.returncode == 0, done.stderr
    (row,) = [json.loads(line) for line in (tmp_path / "ddp_step.jsonl").read_text().splitlines()]
    assert (row["network"], row["ranks"]) == ("unshaped", 2)
    assert row["loss_difference"] <= 1e-3
    assert row["ratio"] == sorted(row["ratio"])
    for backend in ("gloo", "scant"):
        assert len(row[backend]["samples"]) == 2
        # Two ranks: each sends its 12.8 MB of gradients once; DDP's own messages come on top.
        assert 12.8e6 < row[backend]["wire_bytes_per_rank"] < 12.8e6 * 1.2
    assert "scant ÷ gloo" in (tmp_path / "ddp_step.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"), [(("--steps", "0"), "--steps"), (("--ranks", "1"), "--ranks")]
)
def test_benchmark_of_a_training_step_refuses_what_cannot_be_measured(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], named: str
) -> None:
    done = run("bench/sync/ddp_step.py", *arguments, "--out", str(tmp_path), timeout=60)
    assert done.returncode == 2
    assert named in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        (
            "collectives",
            {
                "ranks": "2 4 8; with --quick: 2",
                "networks": "loopback 1gbit 100mbit; with --quick: loopback",
                "operations": "all_reduce reduce_scatter all_gather broadcast all_to_all; "
                "with --quick: all_reduce broadcast",
                "sizes": "1024 65536 1048576 16777216 67108864; with --quick: 1024 1048576",
                "repeats": "3; with --quick: 1",
                "out": "out/bench",
            },
        ),
        (
            "ddp_step",
            {
                "ranks": "4; with --quick: 2",
                "networks": "loopback unshaped 1gbit 100mbit; with --quick: loopback",
                "steps": "10; with --quick: 2",
                "repeats": "4; with --quick: 1",
                "seed": "1",
                "out": "out/bench",
            },
        ),
    ],
)
def test_benchmarks_show_their_defaults(name: str, defaults: dict[str, str]) -> None:
    done = run(f"bench/sync/{name}.py", "--help", timeout=60)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split("options:")[1].split())
    for option, text in defaults.items():
        assert re.search(rf"--{option} [^()]*\(default: {re.escape(text)}\)", shown), shown


@pytest.mark.parametrize("arguments", [("--repeats", "0"), ("--ranks", "0"), ("--sizes", "8", "0")])
def test_benchmark_of_collectives_refuses_what_cannot_be_measured(
    tmp_path: pathlib.Path, arguments: tuple[str, ...]
) -> None:
    done = run("bench/sync/collectives.py", *arguments, "--out", str(tmp_path), timeout=60)
    assert done.returncode == 2
    assert f"{arguments[0]}: 0 is below 1" in done.stderr
    assert not list(tmp_path.iterdir())


REDUCE = """
import numpy, scant, sys
with scant.Communicator.from_env(scant.DirectoryStore(sys.argv[1])) as communicator:
    data = numpy.ones(int(sys.argv[2]) // 4, numpy.float32)
    for _ in range(int(sys.argv[3])):
        communicator.all_reduce(data, "max")
"""


@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_on_the_wire_follow_the_formula(tmp_path: pathlib.Path, ranks: int) -> None:
    size, calls = 8 << 20, 12
    with Lab(ranks, LinkOptions(rate_bits_per_second=10**9)) as lab:
        script = tmp_path / "reduce.py"
        script.write_text(REDUCE)
        store = tmp_path / "store"
        command = [sys.executable, str(script), str(store), str(size), str(calls)]
        codes = [process.wait(120) for process in lab.run(command)]
        sent = [up for up, _ in lab.bytes()]
    assert codes == [0] * ranks
    payload = calls * 2 * (ranks - 1) / ranks * size
    # Stated framing: 72 bytes a frame of 256 KiB; 66 bytes of Ethernet, IPv4 and TCP (with
    # timestamps) a segment of 1,448. At most one acknowledgement of 66 bytes for two segments
    # goes the other way; heartbeats, handshakes and cost agreement are far below 1 %.
    framed = payload * (1 + 72 / 262144) * (1514 / 1448)
    acknowledgements = payload / 1448 / 2 * 66
    for count in sent:
        assert framed * 0.99 <= count <= framed * 1.01 + acknowledgements, sent
