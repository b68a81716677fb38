"""Memory of model states with error feedback: peak RSS with int8 residuals against f32 ones.

Each measurement is a process of its own, forked from one that has torch loaded and nothing else:
parameters, gradients, a torch optimizer and one encoder a tensor take some steps. What the process
had before the model was made is taken off.
"""

from __future__ import annotations

import json
import multiprocessing
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import connection
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness

SAVED_MIN = {"sgd": 0.18, "adam": 0.14}  # as stated
TENSORS, SHAPE, QUICK_SHAPE = 32, (2048, 2048), (256, 256)
STEPS = 3
RESIDUALS = ("f32", "bf16", "i8", "none")


def peak_bytes() -> int:
    """Peak resident memory of this process, as the kernel counts it."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def measure(optimizer: str, residual: str, rows: int, columns: int) -> int:
    """Peak bytes that this process's model took."""
    import torch

    from scant import codec

    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    options = {"lr": 1e-3, "foreach": False} | ({"momentum": 0.9} if optimizer == "sgd" else {})
    # What torch and the codec load when they are first used is no model state.
    warm = torch.ones(64, 64).requires_grad_()
    warm.grad = torch.ones(64, 64)
    codec.decode(codec.Encoder((64, 64), residual=residual).encode(warm.grad), out=warm.grad)
    kinds[optimizer]([warm], **options).step()
    before = peak_bytes()
    parameters = [torch.full((rows, columns), 0.5).requires_grad_() for _ in range(TENSORS)]
    encoders = [
        codec.Encoder((rows, columns), tensor=number, residual=residual, values="q4")
        for number in range(TENSORS)
    ]
    stepper = kinds[optimizer](parameters, **options)
    for step in range(STEPS):
        for parameter, encoder in zip(parameters, encoders, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.uniform_(-1, 1, generator=torch.Generator().manual_seed(step))
            codec.decode(encoder.encode(parameter.grad), out=parameter.grad)
        stepper.step()
    return peak_bytes() - before


def send_measured(pipe: connection.Connection, *of: Any) -> None:
    pipe.send(measure(*of))


def measure_all(rows: int, columns: int) -> dict[str, dict[str, int]]:
    """Peaks by optimizer and residual, one fork after the other; this process stays small."""
    import torch

    torch.set_num_threads(1)
    torch.optim.SGD([torch.ones(1)])  # loads the larger part of torch
    fork = multiprocessing.get_context("fork")
    peaks: dict[str, dict[str, int]] = {}
    for optimizer in SAVED_MIN:
        for residual in RESIDUALS:
            ours, theirs = fork.Pipe(duplex=False)
            of = (theirs, optimizer, residual, rows, columns)
            process = fork.Process(target=send_measured, args=of)
            process.start()
            theirs.close()
            peaks.setdefault(optimizer, {})[residual] = ours.recv()
            process.join()
    return peaks


def run(quick: bool, recorder: harness.Recorder) -> None:
    """Both optimizers with every residual."""
    rows, columns = QUICK_SHAPE if quick else SHAPE
    command = [sys.executable, __file__, str(rows), str(columns)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    for optimizer, peaks in json.loads(out).items():
        recorder.add(
            {
                "case": "memory",
                "optimizer": optimizer,
                "elements": TENSORS * rows * columns,
                "peak_bytes": peaks,
                "saved": 1 - peaks["i8"] / peaks["f32"],
                "saved_min": SAVED_MIN[optimizer],
            }
            | harness.machine()
        )


def report(rows: Sequence[harness.Row]) -> str:
    """A table of what was saved."""
    own = [row for row in rows if row["case"] == "memory"]
    if not own:
        return ""
    head = ["model states", "f32 residual", "bf16", "i8", "none", "i8 saves"]
    lines = [
        [
            row["optimizer"],
            *(f"{row['peak_bytes'][kind] / 1e6:.0f} MB" for kind in RESIDUALS),
            f"{100 * row['saved']:.1f} %",
        ]
        for row in own
    ]
    return harness.markdown(head, lines)


if __name__ == "__main__":
    print(json.dumps(measure_all(*map(int, sys.argv[1:]))))
