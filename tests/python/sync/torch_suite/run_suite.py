"""Runs PyTorch's own torch/testing/_internal/distributed/distributed_test.py on the backend.

    python run_suite.py named 2 [test ...]    the backend's own name: what any backend must pass
    python run_suite.py gloo 4 [test ...]     also what PyTorch asks of gloo only: the suite
                                              believes it runs on gloo, every group is Scant's
    python run_suite.py mpi 4 [test ...]      the same with MPI: all-to-all on the CPU

Ranks are forked, not spawned, because importing torch for every rank of 224 tests takes longer than
the tests. Prints one line per test, "@test NAME OUTCOME", and ends with status 1 on any failure.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import unittest
import warnings
from typing import Any

warnings.simplefilter("ignore")

mode, world_size = sys.argv[1], sys.argv[2]
wanted = sys.argv[3:]
pretended = None if mode == "named" else mode
os.environ["BACKEND"] = pretended or "scant"
os.environ["WORLD_SIZE"] = world_size
os.environ["INIT_METHOD"] = "env://"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
_directory = tempfile.TemporaryDirectory(prefix="scant-suite-")
os.environ["TEMP_DIR"] = _directory.name
for folder in ("barrier", "test_dir", "init_dir"):
    os.mkdir(os.path.join(_directory.name, folder))  # noqa: PTH102, PTH118 - as the suite does

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.testing._internal import common_distributed  # noqa: E402

import scant.torch  # noqa: E402, F401

torch.set_num_threads(1)
for feature in ("ddp", "subgroup"):
    common_distributed.DistTestCases.backend_feature[feature].add("scant")


def renamed(function: Any, position: int) -> Any:
    """The same function with the pretended backend replaced by "scant"."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = list(args)
        if len(arguments) > position and arguments[position] == pretended:
            arguments[position] = "scant"
        if kwargs.get("backend") == pretended:
            kwargs["backend"] = "scant"
        return function(*arguments, **kwargs)

    return call


if pretended is not None:
    dist.is_mpi_available = lambda: True
    dist.init_process_group = renamed(dist.init_process_group, 0)
    dist.new_group = renamed(dist.new_group, 2)

from torch.testing._internal.distributed import distributed_test  # noqa: E402


class TestScant(distributed_test.TestDistBackend, distributed_test.DistributedTest._DistTestBase):
    """PyTorch's tests; each forks its ranks."""

    def setUp(self) -> None:
        super().setUp()
        self._start_processes(torch.multiprocessing.get_context("fork").Process)


class Lines(unittest.TextTestResult):
    """One line per test on standard output."""

    def _line(self, test: Any, outcome: str) -> None:
        sys.stdout.write(f"@test {test._testMethodName} {outcome}\n")
        sys.stdout.flush()

    def addSuccess(self, test: Any) -> None:
        super().addSuccess(test)
        self._line(test, "passed")

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        self._line(test, f"skipped {reason}")

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self._line(test, "failed")

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self._line(test, "failed")


def main() -> int:
    """Run the wanted tests, or all."""
    excluded = os.environ.get("SCANT_EXCLUDE", "").split(",")
    found = wanted or unittest.defaultTestLoader.getTestCaseNames(TestScant)
    names = [name for name in found if name not in excluded]
    suite = unittest.TestSuite(TestScant(name) for name in names)
    runner = unittest.TextTestRunner(resultclass=Lines, verbosity=0)
    return 0 if runner.run(suite).wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
