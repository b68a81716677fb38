"""Loss against steps and bytes: the models of train.py on four ranks, with every kind of exchange.

    ./dev bench convergence --quick
    ./dev bench convergence --models resnet --seeds 1 2 3

The ranks are simulated in one process: each computes its own gradient, the exchange under test
turns them into one, AdamW steps. Nothing is timed. --real also runs four processes over the scant
backend, and compares the losses bit for bit. The processes gather their messages; for points with
a rank they train a wrapped model.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import convergence_goals
import convergence_report
import exchanges
import harness
from captured import RANKS
from exchanges import Options
from train_tasks import TASKS

EVALUATE_EVERY = 25


def dense(values: str, **more: Any) -> Options:
    return Options("codec", 1.0, values, legs=2, **more)


def sparse(density: float, values: str, **more: Any) -> Options:
    return Options("codec", density, values, **more)


def factored(rank: int, factors: str, rest: str) -> Options:
    """`rest`: "" for none, or values, or a density and values ("5% q4")."""
    density, _, values = rest.rpartition("% ")
    return Options(
        "factors", float(density or 100) / 100, values, rank=rank, factors=factors, legs=2
    )


CONFIGURATIONS: dict[str, Options] = {
    "f32": Options(),
    "fp16": Options("fp16"),
    "q8": dense("q8"),
    "q4": dense("q4"),
    "q3": dense("q3"),
    "q2": dense("q2"),
    "q1": dense("q1"),
    "25% q4": sparse(0.25, "q4"),
    "10% bf16": sparse(0.1, "bf16"),
    "10% q4": sparse(0.1, "q4"),
    "1% bf16": sparse(0.01, "bf16"),
    "1% q4": sparse(0.01, "q4"),
    "q4, i8 residual": dense("q4", residual="i8"),
    "q4, bf16 residual": dense("q4", residual="bf16"),
    "q2, i8 residual": dense("q2", residual="i8"),
    "q2, bf16 residual": dense("q2", residual="bf16"),
    "1% q4, i8 residual": sparse(0.01, "q4", residual="i8"),
    "q2, decay 0.9": dense("q2", decay=0.9),
    "q1 there, q3 back": dense("q1", back="q3"),
    "q1 there, q3 back, decay 0.9": dense("q1", back="q3", decay=0.9),
    "q2, decay 0.7": dense("q2", decay=0.7),
    "even budget 0.27, decay 0.9": Options("codec", budget=0.27, legs=2, even=True, decay=0.9),
    "q2, after Adam": dense("q2", local_adam=True),
    "q2, after Adam, decay 0.9": dense("q2", local_adam=True, decay=0.9),
    "1% q4, decay 0.95": sparse(0.01, "q4", decay=0.95),
    "1% q4, momentum": sparse(0.01, "q4", momentum=0.9),
    "1% q4, warm-up": sparse(0.01, "q4", warm_up=50),
    "1% q4, after Adam": sparse(0.01, "q4", local_adam=True),
    "budget 0.27": Options("codec", budget=0.27, legs=2),
    "even budget 0.27": Options("codec", budget=0.27, legs=2, even=True),
    "even budget 0.019": Options("codec", budget=0.019, even=True),
    "even budget 0.019, after Adam": Options("codec", budget=0.019, even=True, local_adam=True),
    "budget 0.019, after Adam": Options("codec", budget=0.019, local_adam=True),
    "f32, after Adam": Options(local_adam=True),
    "PowerSGD 8, after Adam": Options("powersgd", rank=8, local_adam=True),
    "PowerSGD 1, after Adam": Options("powersgd", rank=1, local_adam=True),
    **{
        f"rank {rank} of {factors}" + (f", {rest}" if rest else ""): factored(rank, factors, rest)
        for rank in (2, 4, 8, 12, 16, 32, 64)
        for factors in ("q2", "q3", "q4", "q8", "f32")
        for rest in ("", "1% q4", "5% q4", "q1", "q2", "q3")
    },
    "PowerSGD 32": Options("powersgd", rank=32),
    "PowerSGD 16": Options("powersgd", rank=16),
    "PowerSGD 12": Options("powersgd", rank=12),
    "PowerSGD 8": Options("powersgd", rank=8),
    "PowerSGD 4": Options("powersgd", rank=4),
    "PowerSGD 2": Options("powersgd", rank=2),
    "PowerSGD 1": Options("powersgd", rank=1),
}
REAL = ("q4", "1% q4", "rank 8 of q8, q1", "rank 32 of q4")  # what --real trains

DEFAULTS: harness.Defaults = {
    "models": (list(TASKS), ["transformer"]),
    "configurations": (list(CONFIGURATIONS), ["f32", "q4", "1% q4"]),
    "seeds": ([1, 2, 3], [1]),
    "steps": (250, 4),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument

    def words(name: str, text: str) -> str:
        return f"{text} {harness.default_text(DEFAULTS, name)}".replace("%", "%%")

    add("--quick", action="store_true", help="a short run, to see that everything works")
    add("--models", nargs="+", choices=list(TASKS), metavar="NAME",
        help=words("models", f"of {', '.join(TASKS)}"))  # fmt: skip
    add("--configurations", nargs="+", choices=list(CONFIGURATIONS), metavar="NAME",
        help=words("configurations", "which"))  # fmt: skip
    add("--seeds", type=int, nargs="+", metavar="N", help=words("seeds", "of weights and samples"))
    add("--steps", type=int, metavar="N", help=words("steps", "of training"))
    add("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time")
    add(
        "--real",
        action="store_true",
        help="also run four processes, which must give the same losses: "
        + ", ".join(REAL).replace("%", "%%"),
    )
    add("--gate", action="store_true", help="fail if points with a rank miss a goal")
    text = "no training: table and plots of the rows in these files, as --out/convergence.*"
    add("--report", nargs="+", type=pathlib.Path, metavar="JSONL", help=text)
    add("--out", default="out/bench", help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    harness.apply_defaults(arguments, DEFAULTS)
    return arguments


class LocalAdam:
    """One rank's AdamW, of which the step is wanted before it is taken."""

    def __init__(self, shapes: Sequence[torch.Size], betas: tuple[float, float]) -> None:
        self.betas = betas
        self.first = [torch.zeros(shape) for shape in shapes]
        self.second = [torch.zeros(shape) for shape in shapes]
        self.count = 0

    def step(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.count += 1
        steps = []
        for gradient, first, second in zip(gradients, self.first, self.second, strict=True):
            first.lerp_(gradient, 1 - self.betas[0])
            second.lerp_(gradient * gradient, 1 - self.betas[1])
            mean = first / (1 - self.betas[0] ** self.count)
            scale = (second / (1 - self.betas[1] ** self.count)).sqrt_().add_(1e-8)
            steps.append(mean / scale)
        return steps


class Training:
    """A model, its data and its optimizer, for the ranks that live in this process."""

    def __init__(self, model: str, options: Options, seed: int, ranks: Sequence[int]) -> None:
        torch.set_num_threads(1)
        self.task = TASKS[model](False)
        torch.manual_seed(seed)
        self.model = self.task.model()
        self.parameters = list(self.model.parameters())
        self.options = options
        self.draws = [torch.Generator().manual_seed(seed * 1000 + rank) for rank in ranks]
        shapes = [parameter.shape for parameter in self.parameters]
        workers, self.combiner = exchanges.make(options, shapes, RANKS)
        self.workers = [workers[rank] for rank in ranks]
        self.optimizer = self.task.optimizer(self.parameters)
        self.locals = [LocalAdam(shapes, (0.9, 0.999)) for _ in ranks]

    def messages(self) -> tuple[list[list[Any]], list[float]]:
        """What the ranks of this process send, and their losses."""
        sent, losses = [], []
        for worker, draw, adam in zip(self.workers, self.draws, self.locals, strict=True):
            loss = self.task.loss(self.model, draw)
            gradients = list(torch.autograd.grad(loss, self.parameters))
            if self.options.local_adam:
                gradients = adam.step(gradients)
            sent.append(worker.message(gradients))
            losses.append(float(loss.detach()))
        return sent, losses

    def apply(self, messages: Sequence[list[Any]]) -> None:
        averages = self.combiner.combine(messages)
        if self.options.local_adam:
            rate = self.optimizer.param_groups[0]["lr"]
            with torch.no_grad():
                for parameter, average in zip(self.parameters, averages, strict=True):
                    parameter.mul_(1 - rate * 0.01).sub_(average, alpha=rate)
            return
        for parameter, average in zip(self.parameters, averages, strict=True):
            parameter.grad = average.clone()
        self.optimizer.step()

    def wrap(self) -> None:
        """One rank of several processes, which average the gradients by a plan."""
        import scant.torch

        shapes = [parameter.shape for parameter in self.parameters]
        plan = exchanges.plan_of(self.options, shapes, RANKS)
        self.model = scant.torch.wrap(self.model, plan=plan)

    def wrapped_step(self) -> float:
        """One step of this rank, and its loss."""
        self.optimizer.zero_grad()
        (draw,) = self.draws
        loss = self.task.loss(self.model, draw)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())


def simulate(model: str, name: str, seed: int, steps: int) -> harness.Row:
    """One training with all ranks in this process."""
    training = Training(model, CONFIGURATIONS[name], seed, range(RANKS))
    losses: list[float] = []
    held_out: list[tuple[int, float, float]] = []
    sent = 0.0
    for step in range(1, steps + 1):
        messages, of_ranks = training.messages()
        training.apply(messages)
        losses.append(sum(of_ranks) / RANKS)
        sent += training.combiner.sent_bytes
        if step % EVALUATE_EVERY == 0 or step == steps:
            held_out.append((step, sent, training.task.held_out_loss(training.model)))
    elements = sum(parameter.numel() for parameter in training.parameters)
    return {
        "case": "convergence",
        "model": model,
        "configuration": name,
        "options": dataclasses.asdict(CONFIGURATIONS[name]),
        "seed": seed,
        "steps": steps,
        "loss": losses,
        "held_out": held_out,  # step, bytes sent by a rank so far, loss
        "bytes_per_element": sent / steps / elements,
    }


def job(model: str, name: str, seed: int, steps: int) -> harness.Row:
    os.nice(10)
    return simulate(model, name, seed, steps) | harness.machine()


def all_gather_bytes(own: bytes) -> list[bytes]:
    """Every rank's bytes, in rank order, over torch.distributed."""
    import torch.distributed as dist

    size = torch.tensor([len(own)])
    sizes = [torch.empty_like(size) for _ in range(RANKS)]
    dist.all_gather(sizes, size)
    longest = int(max(int(one) for one in sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    parts = [torch.empty_like(padded) for _ in range(RANKS)]
    dist.all_gather(parts, padded)
    return [part[: int(n)].numpy().tobytes() for part, n in zip(parts, sizes, strict=True)]


def real_losses(model: str, name: str, seed: int, steps: int) -> list[float]:
    """Of one training, in one of four processes."""
    import torch.distributed as dist

    from scant import codec

    options = CONFIGURATIONS[name]
    training = Training(model, options, seed, [dist.get_rank()])
    if options.kind == "factors":
        training.wrap()
    losses = []
    for _ in range(steps):
        if options.kind == "factors":
            loss = training.wrapped_step()
        else:
            (message,), (loss,) = training.messages()
            gathered = all_gather_bytes(b"".join(bytes(record) for record in message))
            training.apply([codec.parse_all(one) for one in gathered])
        mean = torch.tensor([loss], dtype=torch.float64)
        parts = [torch.empty_like(mean) for _ in range(RANKS)]
        dist.all_gather(parts, mean)
        losses.append(sum(float(part) for part in parts) / RANKS)
    return losses


def real_rank(model: str, seed: int, steps: int, out: str) -> None:
    """One of four processes that torchrun started."""
    import torch.distributed as dist

    import scant.torch  # noqa: F401  (registers the backend)

    dist.init_process_group("scant")
    losses = [real_losses(model, name, seed, steps) for name in REAL]
    if dist.get_rank() == 0:
        pathlib.Path(out).write_text(json.dumps(losses))
    dist.barrier()
    harness.leave()


def run_real(model: str, seed: int, steps: int) -> list[harness.Row]:
    """The losses of four processes beside those of the simulation."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "losses"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(RANKS), __file__, "--rank"]
        command += [model, str(seed), str(steps), str(out)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found = json.loads(out.read_text())
    rows = []
    for name, losses in zip(REAL, found, strict=True):
        simulated = simulate(model, name, seed, steps)["loss"]
        row: harness.Row = {"case": "real", "model": model, "configuration": name, "seed": seed}
        row |= {"steps": steps, "loss": losses, "same_bits": losses == simulated}
        rows.append(row | harness.machine())
    return rows


def run_all(arguments: argparse.Namespace, add: Callable[[harness.Row], None]) -> None:
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs) as pool:
        waiting = [
            pool.submit(job, model, name, seed, arguments.steps)
            for seed in arguments.seeds
            for model in arguments.models
            for name in arguments.configurations
        ]
        for done in concurrent.futures.as_completed(waiting):
            row = done.result()
            add(row)
            print(
                f"{row['model']}, {row['configuration']}, seed {row['seed']}: "
                f"{convergence_report.last(row):.3f}",
                file=sys.stderr,
            )
    if arguments.real:
        for model in arguments.models:
            for row in run_real(model, arguments.seeds[0], arguments.steps):
                add(row)


def gate(rows: Sequence[harness.Row], arguments: argparse.Namespace) -> int:
    """The exit status."""
    missed = convergence_goals.missed(rows, arguments.models) if arguments.gate else []
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


def main() -> int:
    """Command line; --rank is this script's own."""
    if len(sys.argv) > 1 and sys.argv[1] == "--rank":
        model, seed, steps, out = sys.argv[2:]
        real_rank(model, int(seed), int(steps), out)
    arguments = parse()
    folder = pathlib.Path(arguments.out)
    if arguments.report:
        rows = harness.read_rows(arguments.report)
        print(convergence_report.write(rows, folder))
        return gate(rows, arguments)
    recorder = harness.Recorder(folder / "convergence.jsonl")
    try:
        run_all(arguments, recorder.add)
    finally:
        recorder.close()
        text = convergence_report.write(recorder.rows, folder)
        print(text)
    differ = any(row.get("same_bits") is False for row in recorder.rows)
    return 1 if differ else gate(recorder.rows, arguments)


if __name__ == "__main__":
    sys.exit(main())
