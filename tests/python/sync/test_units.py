"""Errors, environment, stores and the command line: what needs no ranks."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import scant
from scant import environment, errors, rendezvous, store

ROOT = Path(__file__).parents[3]


def test_every_error_code_of_the_header_has_a_class() -> None:
    header = (ROOT / "include/scant/base/result.h").read_text()
    body = re.search(r"enum class ErrorCode[^{]*\{(.*?)\};", header, flags=re.DOTALL)
    assert body is not None
    codes = re.findall(r"^\s*(\w+),", body.group(1), flags=re.MULTILINE)
    assert len(codes) == 11
    for code in codes:
        error = errors.make_error(code, f"{code}: text", rank=1, peer=2, errno=3)
        assert type(error) is not scant.Error
        assert isinstance(error, scant.Error)
        assert (error.code, error.rank, error.peer, error.errno) == (code, 1, 2, 3)
        assert str(error) == f"{code}: text"


def test_errors_are_also_the_usual_python_ones() -> None:
    assert issubclass(scant.InvalidArgument, ValueError)
    assert issubclass(scant.Timeout, TimeoutError)
    assert issubclass(scant.Io, OSError)
    assert issubclass(scant.Error, RuntimeError)


def test_negative_ranks_mean_none() -> None:
    error = errors.make_error("io", "text", rank=-1, peer=-1, errno=0)
    assert error.rank is None
    assert error.peer is None


@pytest.mark.parametrize("code", ["peer_lost", "io", "timeout", "invalid_argument"])
def test_errors_survive_pickling(code: str) -> None:
    error = errors.make_error(code, "text", rank=1, peer=2, errno=5)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.code, copy.rank, copy.peer, copy.errno) == ("text", code, 1, 2, 5)


def test_dtypes_and_ops_agree_with_the_extension() -> None:
    from scant import _scant

    names = [dtype.name.lower() for dtype in scant.DType]
    assert [{"boolean": "bool"}.get(n, n) for n in _scant.dtype_names] == names
    assert _scant.reduce_op_names == [op.name.lower() for op in scant.ReduceOp]


def test_torch_numbers_its_reductions_like_scant() -> None:
    dist = pytest.importorskip("torch.distributed")
    table = {
        "SUM": scant.ReduceOp.SUM,
        "AVG": scant.ReduceOp.AVERAGE,
        "PRODUCT": scant.ReduceOp.PRODUCT,
        "MIN": scant.ReduceOp.MIN,
        "MAX": scant.ReduceOp.MAX,
        "BAND": scant.ReduceOp.BIT_AND,
        "BOR": scant.ReduceOp.BIT_OR,
        "BXOR": scant.ReduceOp.BIT_XOR,
    }
    for name, op in table.items():
        assert hash(dist.ReduceOp(getattr(dist.ReduceOp, name))) == op


def test_rank_and_size_from_launchers() -> None:
    assert environment.rank_and_size({"RANK": "1", "WORLD_SIZE": "4"}) == (1, 4)
    assert environment.rank_and_size({"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}) == (2, 3)
    both = {"RANK": "1", "WORLD_SIZE": "4", "PMI_RANK": "9", "PMI_SIZE": "10"}
    assert environment.rank_and_size(both) == (1, 4)
    with pytest.raises(scant.InvalidArgument, match="no launcher"):
        environment.rank_and_size({})
    with pytest.raises(scant.InvalidArgument, match="RANK='x' is not a number"):
        environment.rank_and_size({"RANK": "x", "WORLD_SIZE": "4"})
    with pytest.raises(scant.InvalidArgument, match="RANK is set but WORLD_SIZE is not"):
        environment.rank_and_size({"RANK": "1"})
    with pytest.raises(scant.InvalidArgument, match="SLURM_NTASKS is set but SLURM_PROCID is not"):
        environment.rank_and_size({"SLURM_NTASKS": "2"})
    assert environment.rank_and_size({"RANK": "1", "PMI_RANK": "0", "PMI_SIZE": "2"}) == (0, 2)


def test_options_from_the_environment() -> None:
    assert environment.options({}) == {}
    found = environment.options(
        {
            "GLOO_SOCKET_IFNAME": "eth0,eth1",
            "SCANT_PEER_TIMEOUT_S": "2.5",
            "SCANT_RATE_LIMIT": "1000",
            "SCANT_SAME_HOST": "0",
            "SCANT_CONNECTIONS": "2",
            "SLURM_JOB_ID": "77",
        }
    )
    assert found == {
        "address": "eth0",
        "peer_timeout": 2.5,
        "rate_limit_bytes_per_second": 1000,
        "same_host_sockets": False,
        "connections_per_pair": 2,
        "job": "77",
    }
    own = environment.options({"SCANT_INTERFACE": "10.0.0.1", "GLOO_SOCKET_IFNAME": "eth0"})
    assert own["address"] == "10.0.0.1"
    with pytest.raises(scant.InvalidArgument, match="negative"):
        environment.options({"SCANT_RATE_LIMIT": "-1"})


def test_yes_and_no_from_the_environment() -> None:
    for value, words in ((True, "1 yes True ON"), (False, "0 no False off")):
        for word in words.split():
            found = environment.options({"SCANT_SAME_HOST": word})
            assert found == {"same_host_sockets": value}


def test_neither_yes_nor_no_is_refused() -> None:
    text = "SCANT_SAME_HOST='never' is neither yes (1, yes, true, on) nor no (0, no, false, off)"
    with pytest.raises(scant.InvalidArgument, match=re.escape(text)):
        environment.options({"SCANT_SAME_HOST": "never"})


def test_unknown_variables_are_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_warned", set())
    wrong = {"SCANT_RATE_LIMITS": "5", "SCANT_QUX": "1", "SCANTY": "1", "SCANT_STORE": "/s"}
    with pytest.warns(RuntimeWarning) as caught:
        assert environment.options(wrong) == {}
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2
    assert "unknown variable SCANT_QUX: " in texts[0]
    assert texts[1] == "unknown variable SCANT_RATE_LIMITS: did you mean SCANT_RATE_LIMIT?"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        environment.options(wrong)


def test_every_variable_that_is_read_is_known() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names: set[str] = set()
    for file in listed.stdout.split():
        path = ROOT / file
        if path.suffix in (".py", ".sh", ".cc") or path.name == "dev":
            text = path.read_text()
            names |= set(re.findall(r"(?:environ\.get\(|environ\[|getenv\()\"(SCANT_\w+)", text))
            names |= set(re.findall(r"\$\{(SCANT_\w+):-", text))
    assert {"SCANT_DEMO_STEPS", "SCANT_TEST_ONLY", "SCANT_SEED"} <= names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        environment.warn_of_unknown(dict.fromkeys(names, "1"))


def test_store_from_the_environment(tmp_path: Path) -> None:
    found = environment.store(0, 1, {"SCANT_STORE": str(tmp_path)})
    assert isinstance(found, scant.DirectoryStore)
    with pytest.raises(scant.InvalidArgument, match="SCANT_STORE"):
        environment.store(0, 1, {})


def test_options_are_documented_with_their_variables_and_defaults() -> None:
    pytest.importorskip("torch")
    from scant.torch.backend.options import Options

    rows = re.findall(
        r"^\| `(\w+)` \| (?:`(\w+)`|–) \| `([^`]*)` \|",
        (ROOT / "docs/python.md").read_text(),
        flags=re.MULTILINE,
    )
    assert [option for option, _, _ in rows] == [field.name for field in fields(Options)]
    variables = {option: variable for variable, (option, _) in environment.SETTINGS.items()}
    header = (ROOT / "include/scant/collective/communicator.h").read_text()
    in_python = {"": '""', "true": "True", "std::chrono::milliseconds(1500)": "1.5"}
    for option, variable, default in rows:
        assert variable == variables.get(option, ""), option
        found = re.search(rf"\b{option}(?: = ([^;]*))?;", header)
        assert found is not None, option
        text = found[1] or ""
        assert default == in_python.get(text, text), option


def check_store(adapted: store.Store) -> None:
    """What Scant expects of every store."""
    adapted.set("a", b"\x00\xff=")
    assert adapted.get("a", 1.0) == b"\x00\xff="
    adapted.set("a", b"")
    assert adapted.get("a", 1.0) == b""
    assert adapted.set_if_absent("b", b"one")
    assert not adapted.set_if_absent("b", b"two")
    assert adapted.get("b", 1.0) == b"one"
    with pytest.raises(scant.Timeout, match="nobody"):
        adapted.get("nobody", 0.05)
    waiter: list[bytes] = []
    thread = threading.Thread(target=lambda: waiter.append(adapted.get("late", 10.0)))
    thread.start()
    adapted.set("late", b"here")
    thread.join(10)
    assert waiter == [b"here"]


def test_directory_store(tmp_path: Path) -> None:
    check_store(scant.DirectoryStore(str(tmp_path / "store")))


def test_torch_stores(tmp_path: Path) -> None:
    dist = pytest.importorskip("torch.distributed")
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    check_store(store.adapt(server))
    check_store(store.adapt(dist.PrefixStore("p", server)))
    check_store(store.PrefixStore("q/", store.adapt(server)))
    check_store(store.adapt(dist.HashStore()))


def test_objects_that_are_no_store_are_refused() -> None:
    with pytest.raises(TypeError, match="int has no set"):
        store.adapt(3)


def test_each_creation_gets_keys_of_its_own() -> None:
    dist = pytest.importorskip("torch.distributed")
    shared = dist.HashStore()
    for attempt in range(3):
        for _ in range(2):
            adapted: Any = rendezvous.fresh(shared, 2)
            assert adapted._prefix == f"scant/{attempt}/"


def test_bad_communicators_are_refused(tmp_path: Path) -> None:
    directory = scant.DirectoryStore(str(tmp_path))
    with pytest.raises(scant.InvalidArgument, match="rank 2 is out of range"):
        scant.Communicator(directory, 2, 2)
    with pytest.raises(scant.InvalidArgument, match="peer_timeout must be positive"):
        scant.Communicator(directory, 0, 2, peer_timeout=0.0)
    with pytest.raises(TypeError, match="has no set"):
        scant.Communicator(None, 0, 2)


class BrokenStore:
    """Fails in the way it is told to."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def set(self, key: str, value: bytes) -> None:
        raise self._error

    def set_if_absent(self, key: str, value: bytes) -> bool:
        raise self._error

    def get(self, key: str, timeout_s: float) -> bytes:
        raise self._error


def test_errors_of_a_store_come_through() -> None:
    with pytest.raises(scant.Error, match="disk on fire"):
        scant.Communicator(BrokenStore(ValueError("disk on fire")), 0, 2, connect_timeout=2.0)
    with pytest.raises(KeyboardInterrupt):
        scant.Communicator(BrokenStore(KeyboardInterrupt()), 0, 2, connect_timeout=2.0)


def test_missing_rank_is_named(tmp_path: Path) -> None:
    directory = scant.DirectoryStore(str(tmp_path))
    with pytest.raises(scant.Error, match=r"\b1\b"):
        scant.Communicator(directory, 0, 2, connect_timeout=0.5)


def test_errors_at_the_start_name_what_a_python_user_can_set(tmp_path: Path) -> None:
    directory = scant.DirectoryStore(str(tmp_path / "used"))
    alone = scant.Communicator(directory, 0, 1)
    alone.shutdown()
    with pytest.raises(scant.InvalidArgument, match="an empty directory in SCANT_STORE"):
        scant.Communicator(directory, 0, 1)
    with pytest.raises(scant.Mismatch, match=r"WORLD_SIZE, and with an empty SCANT_STORE"):
        scant.Communicator(directory, 1, 2, connect_timeout=5.0)
    for option, variable in (
        ({"connections_per_pair": 99}, "SCANT_CONNECTIONS"),
        ({"peer_timeout": 0.01}, "SCANT_PEER_TIMEOUT_S"),
        ({"job": "x" * 300}, "SCANT_JOB"),
        ({"address": "192.0.2.77"}, "SCANT_INTERFACE"),
    ):
        given: dict[str, Any] = option
        with pytest.raises(scant.Error, match=variable):
            scant.Communicator(scant.DirectoryStore(str(tmp_path / "new")), 0, 1, **given)


def test_no_error_text_names_an_option_as_cpp_does() -> None:
    # A literal that names a C++ field, or an "option": neither is a word of the Python user.
    words = re.compile(r'"[^"\n]*(?:Options::|\(options? )[^"\n]*"')
    for folder in ("src", "include", "python/bindings"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".cc", ".h"):
                assert not words.search(path.read_text()), path


class ClockedStore:
    """Has some keys; a wait for another moves the clock instead of time."""

    def __init__(self, *keys: str) -> None:
        self.keys = set(keys)
        self.now = 100.0
        self.arrivals: dict[float, str] = {}

    def set(self, key: str, value: bytes) -> None:
        self.keys.add(key)

    def set_if_absent(self, key: str, value: bytes) -> bool:
        new = key not in self.keys
        self.keys.add(key)
        return new

    def get(self, key: str, timeout_s: float) -> bytes:
        due = [at for at, name in self.arrivals.items() if name == key]
        if due and due[0] <= self.now + timeout_s:
            self.now = max(self.now, due[0])
            self.keys.add(key)
        if key not in self.keys:
            self.now += timeout_s
            raise scant.Timeout(f"store: key {key!r} was not set")
        return b"value"


def test_waiting_at_the_start_is_said_and_names_who_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clocked = ClockedStore("scant/j/secret", "scant/j/rank/0", "scant/j/rank/1", "scant/j/rank/3")
    patient = rendezvous.Patient(clocked, 0, 5, clock=lambda: clocked.now)
    assert patient.get("scant/j/rank/1", 300.0) == b"value"
    with pytest.raises(scant.Timeout):
        patient.get("scant/j/rank/2", 300.0)
    assert clocked.now == pytest.approx(400.0)
    assert capsys.readouterr().err.splitlines() == [
        f"scant: rank 0 waits for ranks 2, 4 of 5 ({at} s, until 300 s)"
        for at in (10, 20, 40, 80, 160)
    ]


def test_waiting_at_the_start_ends_when_the_rank_comes(capsys: pytest.CaptureFixture[str]) -> None:
    clocked = ClockedStore("here/1", "here/2", "here/3")
    clocked.arrivals = {112.0: "uid"}
    patient = rendezvous.Patient(clocked, 1, 4, clock=lambda: clocked.now)
    assert patient.get("uid", 300.0) == b"value"
    assert clocked.now == pytest.approx(112.0)
    said = capsys.readouterr().err
    assert said == "scant: rank 1 waits for rank 0 of 4 (10 s, until 300 s)\n"
    with pytest.raises(scant.Timeout):
        patient.get("decision", 0.0)
    assert capsys.readouterr().err == ""


def test_who_waits_for_a_decision_is_told_whose_part_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clocked = ClockedStore("member/1", "member/2")
    for keys, missing in ((("member/1", "member/2"), 3), (("member/3",), 0)):
        clocked.keys.update(keys)
        with pytest.raises(scant.Timeout):
            rendezvous.Patient(clocked, 1, 4, clock=lambda: clocked.now).get("decision", 15.0)
        said = capsys.readouterr().err
        assert said == f"scant: rank 1 waits for rank {missing} of 4 (10 s, until 15 s)\n"


@pytest.mark.parametrize(
    ("there", "text", "peer"), [([], "ranks 0, 1 of 3", None), ([1], "rank 0 of 3", 0)]
)
def test_a_start_that_fails_names_all_who_are_missing(
    there: list[int], text: str, peer: int | None
) -> None:
    dist = pytest.importorskip("torch.distributed")
    from scant.torch.backend.membership import open_group

    shared = dist.HashStore()
    for rank in there:
        store.PrefixStore("scant/0/", store.adapt(shared)).set(f"here/{rank}", b"")
    with pytest.raises(scant.Timeout, match=f"^{text} did not start within") as caught:
        open_group(shared, 2, 3, 0.1, is_default=True, options={})
    assert (caught.value.rank, caught.value.peer) == (2, peer)


def test_many_missing_ranks_are_named_in_part(capsys: pytest.CaptureFixture[str]) -> None:
    clocked = ClockedStore("scant/j/secret")
    patient = rendezvous.Patient(clocked, 0, 1000, clock=lambda: clocked.now)
    with pytest.raises(scant.Timeout):
        patient.get("scant/j/rank/1", 11.0)
    said = capsys.readouterr().err
    names = "1, 2, 3, 4, 5, 6, 7, 8 and perhaps more"
    assert said == f"scant: rank 0 waits for ranks {names} of 1000 (10 s, until 11 s)\n"


def run_cli(*arguments: str, block: str = "") -> subprocess.CompletedProcess[str]:
    """`scant ...` in a process where the modules in `block` cannot be imported."""
    program = (
        "import sys\n"
        f"for name in {block.split()!r}: sys.modules[name] = None\n"
        "from scant.cli import main\n"
        f"sys.exit(main({list(arguments)!r}))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "RANK": "0", "WORLD_SIZE": "2"},
    )


def test_cli_help_and_version() -> None:
    for arguments in ((), ("help",), ("--help",)):
        result = run_cli(*arguments, block="torch numpy scant._scant")
        assert result.returncode == 0, result.stderr
        assert "lab" in result.stdout
    result = run_cli("version")
    assert result.stdout.startswith(f"scant {scant.__version__} (")
    result = run_cli("bogus")
    assert result.returncode == 2
    assert "bogus" in result.stderr


def test_cli_lab_needs_neither_torch_nor_numpy_nor_the_extension() -> None:
    result = run_cli("lab", "--help", block="torch numpy scant._scant")
    assert result.returncode == 0, result.stderr
    assert "--rate" in result.stdout


def test_ctrl_c_while_the_command_loads_is_quiet() -> None:
    # The subcommand's module is found by a finder that is interrupted as Ctrl-C would do it.
    program = (
        "import signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == {name!r}: signal.raise_signal(signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from scant._console import main\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv[1:] = ['lab', '--check']\n"
        "sys.exit(main())\n"
    )
    for name in ("scant.cli", "argparse", "scant.lab.cli", "scant.lab.netlink"):
        done = subprocess.run(
            [sys.executable, "-c", program.format(name=name)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", ""), name


def test_cli_env() -> None:
    result = run_cli("env")
    assert result.returncode == 0, result.stderr
    assert "launcher: rank 0 of 2" in result.stdout
    assert "torch backend 'scant': " in result.stdout
    assert "numpy" in result.stdout


@pytest.mark.parametrize(
    "imports", ["import scant.torch", "import torch, scant.torch", "import scant, torch"]
)
def test_backend_is_registered_whoever_is_imported_first(imports: str) -> None:
    pytest.importorskip("torch")
    program = f"{imports}\nimport torch.distributed as dist\nassert dist.Backend.SCANT == 'scant'\n"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_import_is_light() -> None:
    program = (
        "import sys, scant\n"
        "assert not {'numpy', 'torch', 'scant._scant'} & set(sys.modules), sys.modules\n"
        "assert scant.PeerLost.code == 'peer_lost'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
