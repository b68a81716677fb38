"""One rank of bench/sync/train.py: what it measures of step times and of whole trainings.

Rank 0 writes a JSON line for each part that is finished, with the numbers of all ranks.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import statistics
import time
import zlib
from typing import Any

import harness
import torch
import torch.distributed as dist
from train_replay import MADE, Recording, ReplayTask, made, record
from train_sides import ALONE, AUTO, CHECK_EVERY, Side, Spec, of_curve, specs
from train_tasks import TASKS, Task
from worker import Groups, everyones, hand_in, join, tell

LOSS_TOLERANCE = 1e-3  # sums of another order, magnified by AdamW's first steps
COMPARED_STEP = 2  # counted from 0: of this one the losses of exact sides are compared
WARM_UP = 5  # steps; DDP settles its buckets in two, a planner measures in five
AUTO_STEPS = 30  # in which the planner measures, chooses, measures its choice and compares it
BLOCK_LEAST = 2  # steps
LONG_S = 2.0  # an all-reduce that takes longer is not repeated
EVALUATE_EVERY = 25


def of_slowest(value: float, groups: Groups) -> float:
    """The largest of all ranks', on each."""
    held = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(held, dist.ReduceOp.MAX, group=groups["gloo"])
    return float(held)


# ---- step times -----------------------------------------------------------------------------


def dense_seconds(elements: int, groups: Groups) -> dict[str, float]:
    """An f32 all-reduce of all gradients at once, by each library: the faster of two calls."""
    found = {}
    for name, group in groups.items():
        dist.all_reduce(torch.zeros(1024), group=group)  # opens what is opened late
        values, best = torch.zeros(elements), float("inf")
        for _ in range(2):
            dist.barrier(group=groups["gloo"])
            began = time.perf_counter()
            dist.all_reduce(values, group=group)
            best = min(best, of_slowest(time.perf_counter() - began, groups))
            if best > LONG_S:
                break
        found[name] = best
    return found


def settled(side: Side, groups: Groups) -> bool:
    """Whether a period by this side's plan is over and the plan stays; the same on all ranks."""
    if side.spec.kind == "auto" and len(side.losses) < AUTO_STEPS:
        return False
    done = False
    if dist.get_rank() == 0:
        ran = [line for line in side.lines if line["kind"] == "steps"]
        at = ran[-1]["step"]
        changed = [line["step"] for line in side.lines if line.get("changed")]
        done = len(ran) > 1 and not ran[-1]["measuring"] and at not in changed
    return bool(of_slowest(float(done), groups))


def warm_up(side: Side, plan: dict[str, Any], groups: Groups) -> float:
    """Seconds of a step, of the slowest rank."""
    dist.barrier(group=groups["gloo"])
    began = 0.0
    for step in range(WARM_UP):
        if step == WARM_UP - 2:
            began = time.perf_counter()
        side.step()
    seconds = of_slowest((time.perf_counter() - began) / 2, groups)
    if side.ours:
        most = min(plan["warm_up_steps"], int(plan["warm_up_s"] / seconds))
        agreed, steps, began = side.agreements, 0, time.perf_counter()
        for _ in range(most):
            side.step()
            steps += 1
            if side.agreements != agreed:
                agreed = side.agreements
                if settled(side, groups):
                    break
        if steps:
            seconds = of_slowest((time.perf_counter() - began) / steps, groups)
    tell(f"{side.spec.name}: {1e3 * seconds:,.0f} ms after {len(side.losses)} steps")
    return seconds


def said(side: Side) -> dict[str, Any]:
    """What the run log tells of the last period by the plan; rank 0's."""
    periods = [one for one in side.lines if one["kind"] == "steps" and not one["measuring"]]
    choices = [one for one in side.lines if one["kind"] == "plan"]
    if not periods:
        return {}
    names = ("plan", "predicted_s", "step_s", "exposed_s", "encode_s", "kept", "rho", "sent_bytes")
    found = {name: periods[-1].get(name) for name in names}
    found["predicted_s"] = found["predicted_s"] or None  # 0: nothing was predicted
    found["sent_to_budget"] = sent_to_budget(periods)
    if choices:
        found["why"] = choices[-1]["why"]
    return found


def sent_to_budget(periods: list[dict[str, Any]]) -> float | None:
    """Bytes sent ÷ those that the plan asks for, over all steps by the plan that ran last."""
    by_it = [one for one in periods if one["plan"] == periods[-1]["plan"]]
    wanted = sum(one["steps"] * (one.get("predicted_bytes") or 0) for one in by_it)
    return sum(one["steps"] * one["sent_bytes"] for one in by_it) / wanted if wanted else None


def waited(side: Side) -> dict[str, float | None]:
    """Over the steps of all blocks; the share of encoding that backward hid."""
    encode_s = sum(one.encode_s for one in side.waits)
    overlapped_s = sum(one.overlapped_s for one in side.waits)
    return {
        "waited_s": statistics.median(one.exposed_s for one in side.waits),
        "encode_s": encode_s / len(side.waits),
        "encode_overlapped": overlapped_s / encode_s if encode_s > 0 else None,
    }


def wrong(sides: list[Side], groups: Groups) -> str:
    """Why these numbers must not be used; empty: they may be."""
    parallel = [side for side in sides if side.spec.kind != "alone"]
    sums = everyones(
        {one.spec.name: zlib.crc32(one.parameters().numpy().tobytes()) for one in parallel}, groups
    )
    for side in parallel:
        name = side.spec.name
        if len({one[name] for one in sums}) > 1:
            return f"{name}: parameters differ between the ranks"
    exact = [side for side in parallel if side.spec.curve == "f32"]
    losses = everyones({side.spec.name: side.losses[COMPARED_STEP] for side in exact}, groups)
    for one in losses:
        if not max(one.values()) / min(one.values()) - 1 <= LOSS_TOLERANCE:
            return f"losses of exact sides differ: {one}"
    return ""


def measure_steps(task: Task, plan: dict[str, Any], groups: Groups) -> dict[str, Any]:
    """This rank's blocks of all sides; every rank runs the same ones."""
    real = plan["compute"] == "real"
    wanted = specs(plan["buckets_mb"], plan["powersgd"], plan["plans"], backend=real)
    sides = {one.name: Side(one, task, plan["seeds"][0], groups) for one in wanted}
    elements = sum(one.numel() for one in sides[ALONE].module.parameters())
    found: dict[str, Any] = {"elements": elements, "dense_s": dense_seconds(elements, groups)}
    seconds = {name: warm_up(side, plan, groups) for name, side in sides.items()}
    found["error"] = wrong(list(sides.values()), groups)
    if found["error"]:
        return found
    found["said"] = {name: said(side) for name, side in sides.items() if side.ours}
    counts = {
        name: max(BLOCK_LEAST, min(plan["steps"], round(plan["block_s"] / one)))
        for name, one in seconds.items()
    }
    samples: dict[str, list[harness.Sample]] = {name: [] for name in sides}
    barrier = functools.partial(dist.barrier, group=groups["gloo"])
    for side in sides.values():
        side.waits.clear()
        side.silent = [0, 0]
    for name in harness.palindrome(list(sides)) * plan["repeats"]:
        barrier()
        side = sides[name]
        samples[name].append(harness.block(side.step, counts[name], barrier, side.settle))
    found["error"] = wrong(list(sides.values()), groups)
    plans = [one["plan"] for one in sides[AUTO].lines if one["kind"] == "steps"]
    found["silent"] = {name: side.silent for name, side in sides.items() if side.ours}
    found["waits"] = {name: waited(side) for name, side in sides.items() if side.ours}
    found |= {"samples": samples, "steps_per_block": counts, "plans": list(dict.fromkeys(plans))}
    for side in sides.values():
        side.close()
    return found


# ---- whole trainings ------------------------------------------------------------------------


def alone_seconds(side: Side, plan: dict[str, Any], groups: Groups) -> float:
    """A step without communication, now."""
    barrier = functools.partial(dist.barrier, group=groups["gloo"])
    barrier()
    return of_slowest(harness.block(side.step, plan["steps"], barrier)["seconds"], groups)


def train(task: Task, name: str, seed: int, plan: dict[str, Any], groups: Groups) -> dict[str, Any]:
    """One training from its first step. Parameters are kept now and then, and looked at when it is
    over: a pause would be part of the step times that a planner sees."""
    alone = Side(Spec(ALONE, "alone", ""), task, seed, groups)
    alone.step()
    before = alone_seconds(alone, plan, groups)
    side = Side(of_curve(name), task, seed, groups, {"check_every": CHECK_EVERY})
    at_s: list[float] = []
    kept: list[tuple[int, int, torch.Tensor]] = []  # step, bytes sent, parameters
    dist.barrier(group=groups["gloo"])
    wire, used, began = harness.sent_bytes(), harness.cpu_seconds(), time.perf_counter()
    for step in range(1, plan["train_steps"] + 1):
        side.step()
        if step == plan["train_steps"]:
            side.settle()
        at_s.append(time.perf_counter() - began)
        if step % EVALUATE_EVERY == 0 or step == plan["train_steps"]:
            kept.append((step, harness.sent_bytes() - wire, side.parameters()))
    cpu = harness.cpu_seconds() - used
    after = alone_seconds(alone, plan, groups)
    sums = everyones([zlib.crc32(one.numpy().tobytes()) for _, _, one in kept], groups)
    held_out = [(step, sent, alone.held_out_loss(one)) for step, sent, one in kept]
    tell(f"{name}, seed {seed}: {at_s[-1]:.1f} s, held-out loss {held_out[-1][2]:.3f}")
    ran = [line for line in side.lines if line["kind"] in ("steps", "guard")]
    told = [(one["step"], one["plan"], one.get("step_s"), one.get("predicted_s")) for one in ran]
    periods = [line for line in ran if line["kind"] == "steps" and not line["measuring"]]
    side.close()
    return {
        "loss": side.losses,
        "at_s": at_s,
        "held_out": held_out,
        "cpu_s": cpu,
        "same_parameters": all(one == sums[0] for one in sums),
        "alone_s": [before, after],
        "plans": told,
        "silent": side.silent,
        "sent_to_budget": sent_to_budget(periods) if periods else None,
        "guard": [line["why"] for line in ran if line["kind"] == "guard"],
    }


# ---- what is replayed -----------------------------------------------------------------------


def recording(plan: dict[str, Any], groups: Groups) -> Recording:
    """This rank's gradients at the times of rank 0, which are those of an idle machine: ranks
    record one after the other."""
    seed, rank = plan["seeds"][0], dist.get_rank()
    if plan["model"] == MADE:
        return made(plan["quick"], seed, rank)
    own = None
    for turn in range(dist.get_world_size()):
        if turn == rank:
            own = record(TASKS[plan["model"]](plan["quick"]), seed, rank)
        dist.barrier(group=groups["gloo"])
    assert own is not None
    first = [dataclasses.replace(own, gradients=[]) if rank == 0 else None]
    dist.broadcast_object_list(first, group=groups["gloo"])
    assert first[0] is not None
    return own.at_times_of(first[0])


# ---- the rank -------------------------------------------------------------------------------


def work(plan: dict[str, Any]) -> None:
    """Measures all parts and gives the numbers to rank 0."""
    groups = join()
    replayed = plan["compute"] == "replay"
    task = ReplayTask(recording(plan, groups)) if replayed else TASKS[plan["model"]](plan["quick"])
    if "steps" in plan["parts"]:
        case = "replay" if replayed else "steps"
        hand_in(plan, {"case": case}, measure_steps(task, plan, groups), groups)
        gc.collect()
    if "training" in plan["parts"]:
        for seed in plan["seeds"]:
            for name in plan["train"]:
                part = {"case": "training", "configuration": name, "seed": seed}
                hand_in(plan, part, train(task, name, seed, plan, groups), groups)
    dist.barrier(group=groups["gloo"])
