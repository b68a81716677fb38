"""Journals, checkpoints, residuals, records, plans and run logs of earlier versions still load.

Each folder of tests/golden/artifacts was written by the version that names it, with
tests/golden/make_artifacts.py, and says in facts.json what must be found in it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Launch, case_names, launch_ranks, worker_path

pytest.importorskip("torch")
np = pytest.importorskip("numpy")

import torch  # noqa: E402 - after importorskip
from torch import nn  # noqa: E402

from scant import Journal, _scant, codec, runlog  # noqa: E402
from scant.journal import cli  # noqa: E402
from scant.runlog import explain  # noqa: E402

ARTIFACTS = Path(__file__).resolve().parents[3] / "tests" / "golden" / "artifacts"
VERSIONS = sorted(path.name for path in ARTIFACTS.iterdir())
WORKER = "golden_artifacts.py"
JOURNALS = ("split", "gather", "plain")
CODECS = [f"{values}-{density}" for values in codec.VALUES for density in (1.0, 0.05)]


def facts_of(version: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((ARTIFACTS / version / "facts.json").read_text())
    assert facts["version"] == version
    return facts


def digest(arrays: list[Any]) -> str:
    """As make_artifacts.py took it."""
    content = hashlib.sha256()
    for one in arrays:
        content.update(np.ascontiguousarray(one).tobytes())
    return content.hexdigest()[:16]


class Net(nn.Module):
    """As the workers' model, whose module joins a group when it is imported."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(16, width)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.branch = nn.Linear(width, width)
        self.last = nn.Linear(width, 4)


# ---- one process -----------------------------------------------------------------------------


def test_there_are_versions() -> None:
    assert "0.1.0" in VERSIONS


@pytest.mark.parametrize("name", JOURNALS)
@pytest.mark.parametrize("version", VERSIONS)
def test_journal_loads_and_verifies(
    version: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = facts_of(version)
    known = facts["journals"][name]
    at = ARTIFACTS / version / "journals" / name
    model = Net(facts["width"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.5)
    restored = Journal.load(at, model, optimizer)
    assert (restored.base_step, restored.step) == (known["base"], known["steps"])
    assert restored.problems == []
    state = optimizer.state_dict()["state"]
    momenta = [state[key]["momentum_buffer"] for key in sorted(state)]
    tensors = [*model.parameters(), *model.buffers(), *momenta]
    assert digest([one.detach().numpy() for one in tensors]) == known["at_end"][0]
    assert cli.main(["verify", str(at)]) == 0
    assert cli.main(["export", str(at), str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert cli.main(["ls", "--json", str(at)]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("version", VERSIONS)
def test_records_and_encoders_load(version: str, name: str) -> None:
    known = facts_of(version)["codec"][name]
    at = ARTIFACTS / version / "codec"
    record = codec.Record((at / f"{name}.record").read_bytes())
    assert record.entries == known["entries"]
    assert digest([codec.decode(record)]) == known["decoded"]
    encoder = codec.Encoder.restore((at / f"{name}.encoder").read_bytes())
    assert encoder.step == known["step"] == 3
    assert digest([encoder.residual()]) == known["residual"]
    saved = encoder.save()
    assert saved == (at / f"{name}.encoder").read_bytes()


@pytest.mark.parametrize("version", VERSIONS)
def test_plan_loads(version: str) -> None:
    known = facts_of(version)["plan"]
    shapes = [(rows, columns) for rows, columns in known["shapes"]]
    layout = _scant.GradientLayout(shapes, known["ranks"])
    plan = _scant.FusionPlan.parse((ARTIFACTS / version / "plan.bin").read_bytes(), layout)
    assert plan.reversed == known["reversed"]
    assert json.loads(json.dumps(plan.buffers)) == known["buffers"]


@pytest.mark.parametrize("version", VERSIONS)
def test_run_log_is_read_and_explained(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = facts_of(version)["run_log"]
    at = ARTIFACTS / version / "run.jsonl"
    lines = runlog.read(at)
    assert [type(line).__name__.lower() for line in lines] == known["kinds"]
    assert isinstance(lines[0], runlog.Run)
    assert lines[0].ranks == 2
    assert any(isinstance(line, runlog.Plan) for line in lines)
    assert lines[-1].step == known["last_step"]
    assert explain.main([str(at)]) == 0
    assert "2 ranks" in capsys.readouterr().out


# ---- the ranks that wrote them ---------------------------------------------------------------

_launches: dict[str, Launch] = {}


def launch_of(version: str) -> Launch:
    if version not in _launches:
        environment = {"GOLDEN": str(ARTIFACTS / version)}
        _launches[version] = launch_ranks([str(worker_path(WORKER))], 2, 240.0, env=environment)
    return _launches[version]


@pytest.mark.parametrize("case", case_names(WORKER))
@pytest.mark.parametrize("version", VERSIONS)
def test_two_ranks(version: str, case: str) -> None:
    launch = launch_of(version)
    for rank in range(2):
        outcome = launch.case_results(rank).get(case)
        assert outcome == "ok", f"{case}: rank {rank}: {outcome}\n{launch.text()}"


@pytest.mark.parametrize("version", VERSIONS)
def test_two_ranks_leave_cleanly(version: str) -> None:
    launch = launch_of(version)
    assert launch.returncodes == [0, 0] and not launch.timed_out, launch.text()


# ---- fewer ranks -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOURNALS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_journal_goes_on_in_one_process(version: str, name: str, tmp_path: Path) -> None:
    import scant

    facts = facts_of(version)
    known = facts["journals"][name]
    at = tmp_path / name
    shutil.copytree(ARTIFACTS / version / "journals" / name, at)
    model = Net(facts["width"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.5)
    with scant.Journal(at, job="golden", log="always").attach(model, optimizer) as journal:
        restored = journal.restore()
        assert restored is not None
        assert restored.step == journal.step == known["steps"]
