"""What the journal does at each optimizer step: log it, copy and write bases beside it."""

from __future__ import annotations

import collections
import json
import math
import time
import warnings
from typing import Any

import torch

from scant import _scant, metrics
from scant.errors import Error, InvalidArgument, Refused
from scant.torch.checkpoint.base import random_states, settings_of, shards, source, tensors_of
from scant.torch.checkpoint.device import HostCopies
from scant.torch.checkpoint.extra import states_of
from scant.torch.checkpoint.json_values import as_json
from scant.torch.checkpoint.members import Members, gather
from scant.torch.checkpoint.pace import Costs, Gaps, next_interval
from scant.torch.checkpoint.restore import Restored
from scant.torch.checkpoint.training import Training

__all__ = ["Recorder"]

_SEGMENT_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_BASE_WAIT_S = 120.0  # for the last base, when the next is due
_CLOSE_WAIT_S = 30.0  # likewise, when the journal closes: another rank may have failed
_LOG_SHARE = 0.02  # of a step's time, for gradients that do not come as records
_JUDGED_AFTER = 24  # logged steps
_REPLAY_GUESS = 0.05  # of a step: decoding and the optimizer's step, until it is measured
_SMALL_BYTES = 4 << 20  # of memory: stacks of four threads, names, settings
_HISTORY = 4096

# Optimizers of torch that call a closure once, before anything else: a step with one is then a step
# without. Lightning gives one to every step. Of subclasses nobody knows.
_CLOSURE_ONCE = {
    one
    for one in vars(torch.optim).values()
    if isinstance(one, type)
    and issubclass(one, torch.optim.Optimizer)
    and one not in (torch.optim.Optimizer, torch.optim.LBFGS)
}


class Recorder:
    """Hooks of one training. Owner: the training thread."""

    def __init__(
        self,
        training: Training,
        members: Members,
        group: Any,
        folder: _scant.JournalFolder,
        identity: tuple[int, int],
        sequence: int,
        options: Any,
    ) -> None:
        self._training = training
        self._members = members
        self._group = group
        self._folder = folder
        self._identity = identity
        self._options = options
        self.step = 0
        self.restored = False
        self.replays = False  # the optimizer's steps are those of the log
        self._timeline = 0
        self._writer: _scant.JournalWriter | None = None
        self._sequence = sequence
        self._base = _scant.JournalBase(
            folder, members.place, len(members.ranks), options.staging_bytes, _CHUNK_BYTES,
            options.keep_bases,
        )  # fmt: skip
        self._gaps = Gaps()
        self._failed = False
        self._failure: str | None = None  # what the other ranks are told at their next base
        self._told_failure = False  # all ranks know that one failed: none makes bases
        self._open = False  # the writer has a step
        self._depth = 0  # of the optimizer's step: one class may call another's
        self._in_closure = False  # forward and backward run within the optimizer's step
        self._logs = options.log != "never"  # on the folder's first rank: whether entries go on
        self._costly = False  # they do not, since they cost too much
        self._hole = False  # a step is missing in the log: only a base heals it
        self._told: dict[str, Any] = {}  # settings as the log has them
        self._base_begun_at = 0.0
        self._base_at = -1  # step of the last base that was begun
        self._base_left = 0  # bytes that are to be copied in backward
        self._late: dict[str, Any] | None = None  # of the base that is being copied
        self._kept: list[torch.Tensor] = []  # what the base writer reads
        self._host = HostCopies()
        self._interval = options.base_every if options.base_every != "auto" else 0
        self._base_cost = (0.0, 0.0)  # work, and until it had its name
        self._stalls: collections.deque[float] = collections.deque(maxlen=_HISTORY)
        self._logged: collections.deque[dict[str, Any]] = collections.deque(maxlen=_HISTORY)
        self._totals = {"entries": 0, "bytes": 0, "as_is": 0, "holes": 0, "bases": 0}
        self._base_bytes = 0
        optimizer: Any = training.optimizer
        module: Any = training.module
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            module.register_forward_pre_hook(self._before_forward),
            module.register_forward_hook(self._after_forward),
        ]

    # -- what the journal calls -----------------------------------------------------------------

    def continue_at(self, result: Restored, took_back: bool) -> None:
        """Steps go on from there; what the log has behind it counts no more."""
        self._open_log(result.joins)
        self.step = self._base_at = result.step
        self._timeline = result.timeline + (1 if took_back else 0)
        if took_back and self._members.leads:
            contents = self._folder.look(False)["manifest"]
            oldest = contents["oldest"] if contents is not None else result.step
            self._folder.write_manifest(
                *self._identity, self._timeline, result.base_step, self._sequence,
                min(oldest, result.base_step),
            )  # fmt: skip
        self._agree()

    def begin_base(self, waits: bool = False) -> None:
        """All ranks, after the same step. ``waits``: until it has its name, for there is no other,
        and entries without a base would be no use."""
        self._agree()
        if self._failed:
            return
        try:
            self._begin_base()
            if waits:
                self._finish_copying()
                self._poll_base(_BASE_WAIT_S)
        except (Error, OSError) as error:
            self._fail(error)

    def _open_log(self, joins: int | None) -> None:
        """Behind the state that was restored, if there is one."""
        if self._members.leads and self._options.log != "never":
            self._writer = _scant.JournalWriter(
                self._folder, *self._identity, self._sequence, joins, self._training.bytes,
                self._options.unsynced_steps, _SEGMENT_BYTES,
            )  # fmt: skip

    def sync(self) -> None:
        """Every entry so far is durable when it returns."""
        if self._writer is not None:
            self._writer.sync()

    def stats(self) -> dict[str, Any]:
        """Figures of this rank since the start."""
        cost = self._writer.cost() if self._writer is not None else {}
        memory = _SMALL_BYTES + self._training.copied_bytes(self._members.size)
        memory += self._options.staging_bytes + cost.get("memory_bytes", 0)
        return {
            "step": self.step,
            "base_interval": self._interval,
            "logs": self._logs,
            "stall_s": list(self._stalls),
            "logged": list(self._logged),
            "base_bytes": self._base_bytes,
            "base_work_s": self._base_cost[0],
            "base_s": self._base_cost[1],
            "memory_bytes_max": memory + self._host.nbytes,
            **self._totals,
            **cost,
        }

    def close(self, waits: bool = True) -> None:
        """The last base gets its name, unless others may be gone; hooks go."""
        for hook in self._hooks:
            hook.remove()
        try:
            if not self._failed:
                if waits:
                    self._finish_copying()
                    self._poll_base(_CLOSE_WAIT_S)
                self.sync()
        finally:
            self._base.close()
            if self._writer is not None:
                self._writer.close()

    # -- hooks ----------------------------------------------------------------------------------

    def _before_forward(self, *_: Any) -> None:
        """restore() was not called: the first base is of before the first step."""
        if not self.restored and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._refuse_or_begin()

    def _after_forward(self, *_: Any) -> None:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._abandon_step()
            self._gaps.backward_begins()
            self._grant()

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """What is logged and what is copied must be as the step finds it."""
        if self.replays:
            return None
        if not self.restored:
            self._refuse_or_begin()
        self._depth += 1
        if self._failed or self._depth > 1:
            return None
        closure = _closure(args, kwargs)
        if closure is None:
            self._keep(optimizer, True)
            return None
        once = type(optimizer) in _CLOSURE_ONCE
        if not once:
            self._keep(optimizer, False)  # it may change parameters before it asks
        watched = self._watched(optimizer, closure, once)
        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, {**kwargs, "closure": watched}

    def _watched(self, optimizer: Any, closure: Any, once: bool) -> Any:
        """The closure; behind the one call of it that there is, gradients are as without one."""

        def watched() -> Any:
            self._in_closure = True
            try:
                loss = closure()
            except BaseException:
                if once:
                    self._depth = 0  # the step had not begun
                raise
            finally:
                self._in_closure = False
            if once and not self._failed:
                self._keep(optimizer, True)
            return loss

        return watched

    def _keep(self, optimizer: Any, logs: bool) -> None:
        """The optimizer is about to change what is copied, by these gradients."""
        self._gaps.step_begins()
        begun = time.perf_counter()
        try:
            self._finish_copying()
            if self._options.log != "never":
                self._training.check_known()
            if not logs or getattr(optimizer, "grad_scale", None) is not None:
                self._stop_logging("the optimizer's step computes gradients by itself")
            self._log(optimizer)
        except (Error, OSError) as error:
            self._fail(error)
        self._stalls.append(time.perf_counter() - begun)

    def _after_step(self, *_: Any) -> None:
        if self.replays:
            return
        self._depth -= 1
        if self._depth > 0:
            return
        self.step += 1
        due = self._interval and self.step - self._base_at >= self._interval
        if self._failed:
            if due and not self._told_failure:  # the others ask at their bases
                self._base_at = self.step
                self._agree()
            return
        begun = time.perf_counter()
        try:
            if self._open:
                self._open = False
                assert self._writer is not None
                self._note(self._writer.end())
            self._poll_base(0.0)
        except (Error, OSError) as error:
            self._fail(error)
        try:
            if due:
                self._base_at = self.step
                self._agree()
                if not self._failed:
                    self._begin_base()
        except (Error, OSError) as error:
            self._fail(error)
        self._stalls[-1] += time.perf_counter() - begun
        self._gaps.step_over()

    # -- inside ---------------------------------------------------------------------------------

    def _begin_base(self) -> None:
        """What is copied stays as it is until the next step."""
        if self._writer is None:
            self._open_log(None)
        if self._base.busy():
            self._poll_base(_BASE_WAIT_S)
        if self._writer is not None:
            self._sequence = self._writer.cut()
        self._hole = False
        self._told = {}
        if self._costly and self._training.wrapped is not None:
            self._logs, self._costly = True, False  # another plan may give records by now
            self._logged.clear()
        tensors = tensors_of(self._training.module, self._training.optimizer)
        buffers = {name for name, _ in self._training.module.named_buffers()}
        self._kept = []
        for name in buffers & set(tensors.model):  # forward writes into them
            tensors.model[name] = tensors.model[name].clone()
            self._kept.append(tensors.model[name])
        place, ranks = self._members.place, len(self._members.ranks)
        sources = []
        total = 0
        for kind, of in (("model", tensors.model), ("optimizer", tensors.optimizer)):
            names = shards(of, ranks, buffers)[place]
            mine = {name: self._host.of(of[name]) for name in names}
            sources.append(source(f"{kind}-{place:04d}.safetensors", mine, self._kept))
            total += sum(one.nbytes for one in mine.values())
        residuals = f"residuals-{place:04d}.safetensors"
        wrapped = self._training.wrapped
        self._base.start(
            self._identity, self._timeline, self.step, self._sequence, self._members.size, sources,
            residuals, None if wrapped is None else wrapped._averager,
        )  # fmt: skip
        self._late = {
            "scant": 1, "rank": self._members.rank, "world": self._members.size, "step": self.step,
            "random": random_states(), "cursor": self._cursor(),
            "values": tensors.values, "residuals": residuals, "parameters": self._training.names,
        }  # fmt: skip
        first = int(total * self._gaps.forward_share()) if self._host.arrived() else 0
        self._base.grant(first)
        self._base_left = total - first
        self._base_bytes = total
        self._base_begun_at = time.perf_counter()
        self._base_at = self.step

    def _abandon_step(self) -> None:
        """An exception ended the optimizer's last step: nobody knows what it has done."""
        if self._depth == 0 or self._in_closure:
            return
        self._depth = 0
        if self._failed:
            return
        if self._open and self._writer is not None:
            self._open = False
            self._writer.end()
        self._fail(InvalidArgument("journal: an exception ended the optimizer's last step"))

    def _refuse_or_begin(self) -> None:
        """restore() was not called: right for a new journal only."""
        if self._folder.look(False)["bases"]:
            raise InvalidArgument(
                f"journal: {self._options.path} holds an earlier run: call restore() after "
                "attach(), or give another folder"
            )
        self.restored = True
        self.begin_base(waits=True)

    def _log(self, optimizer: Any) -> None:
        if self._writer is None or not self._logs or self._hole:
            return
        told = self._told_of(optimizer)
        settings = told if told != self._told else {}
        left = self._residual_norm()
        if left is not None:
            settings = {**settings, "left": left}
        settings = {**settings, "seen": self._training.seen(self.step + 1)}
        self._writer.begin(
            self.step + 1, self._training.gradients(), self._training.averager(),
            self._training.state(), self._members.size,
            json.dumps(settings, separators=(",", ":")),
        )  # fmt: skip
        self._told = told
        self._open = True

    def _residual_norm(self) -> float | None:
        """Of what this rank has kept back so far."""
        wrapped = self._training.wrapped
        if wrapped is None or wrapped.last_step is None:
            return None
        return math.sqrt(sum(wrapped.last_step["parts"]["energy_left"]))

    def _told_of(self, optimizer: Any) -> dict[str, Any]:
        """How the step is taken, and what goes on with it."""
        told: dict[str, Any] = {"groups": settings_of(optimizer)}
        if self._training.cursor is not None:
            told["cursor"] = self._cursor()
        if self._training.extra:
            told["extra"] = states_of(self._training.extra)
        return told

    def _cursor(self) -> Any:
        cursor = self._training.cursor
        return None if cursor is None else as_json(cursor(), "what the cursor gave")

    def _note(self, logged: dict[str, Any]) -> None:
        if not logged["proven"]:
            self._hole = True
            self._totals["holes"] += 1
            if self._totals["holes"] == 1:
                warnings.warn(
                    f"journal: the optimizer wrote into its gradients at step {self.step}: this "
                    "step is not in the log, which goes on after the next base",
                    RuntimeWarning,
                    stacklevel=4,
                )
            return
        self._totals["entries"] += 1
        self._totals["bytes"] += logged["bytes"]
        self._totals["as_is"] += logged["as_is"]
        self._logged.append(logged)
        metrics.set_gauges(
            {
                "scant_journal_bytes_per_step": float(logged["bytes"]),
                "scant_journal_step": float(self.step),
                "scant_journal_unsynced_steps": float(logged["unsynced"]),
            }
        )
        self._judge()

    def _judge(self) -> None:
        """Gradients as they are may cost more than they are worth."""
        if self._options.log != "auto" or len(self._logged) < _JUDGED_AFTER:
            return
        recent = list(self._logged)[-_JUDGED_AFTER:]
        if not all(one["as_is"] for one in recent) or self._gaps.step_s == 0:
            return
        cost = sorted(one["begin_s"] + one["end_s"] for one in recent)[_JUDGED_AFTER // 2]
        if cost > _LOG_SHARE * self._gaps.step_s:
            share = 100 * cost / self._gaps.step_s
            self._costly = True
            self._stop_logging(f"gradients do not come as records, and cost {share:.1f} % a step")

    def _stop_logging(self, why: str) -> None:
        if self._writer is None or not self._logs:
            return
        self._logs = False
        warnings.warn(
            f"journal: no log from step {self.step + 1} on, only bases: {why}",
            RuntimeWarning,
            stacklevel=4,
        )

    def _finish_copying(self) -> None:
        late, self._late = self._late, None
        if late is None:
            return
        late["settings"] = settings_of(self._training.optimizer)
        late["extra"] = states_of(self._training.extra)
        text = json.dumps(late, separators=(",", ":")).encode()
        self._host.wait()
        self._base.finish_copying(f"state-{self._members.place:04d}.json", text)
        self._base_left = 0
        self._kept = []

    def _poll_base(self, wait_s: float) -> None:
        done = self._base.poll(wait_s)
        if done is not None:
            self._totals["bases"] += 1
            took_s = time.perf_counter() - self._base_begun_at
            self._base_cost = (done["copy_s"] + done["write_s"], took_s)
            metrics.set_gauges({"scant_journal_base_step": float(done["step"])})

    def _agree(self) -> None:
        """At every base: when the next one is due, and whether all ranks still keep anything."""
        step_s = self._gaps.step_s
        mine = Costs(step_s, *self._base_cost, _REPLAY_GUESS * step_s, self._logs)
        everyone = gather((mine, self._failure), self._group)
        if self._options.base_every == "auto":
            self._interval = next_interval(Costs.slowest([one for one, _ in everyone]))
        failures = [(rank, why) for rank, (_, why) in enumerate(everyone) if why is not None]
        if failures:
            self._told_failure = True
            if not self._failed:
                rank, why = failures[0]
                self._fail(Refused(f"journal: rank {rank} keeps nothing any more: {why}"))

    def _grant(self) -> None:
        """The rest may be copied in backward; from pinned memory only what has come there."""
        if self._host.arrived():
            self._base.grant(self._base_left)
            self._base_left = 0

    def _fail(self, error: Exception) -> None:
        """The older states stay; by default training ends here."""
        self._failed = True
        self._failure = str(error)
        if self._options.on_error == "raise":
            raise error
        warnings.warn(
            f"{error}; nothing is kept from step {self.step} on, training goes on",
            RuntimeWarning,
            stacklevel=4,
        )


def _closure(args: Any, kwargs: Any) -> Any:
    """What step() was given, if anything; ``args`` begins with the optimizer."""
    return args[1] if len(args) > 1 else kwargs.get("closure")
