"""A DDP communication hook for those who keep gloo or NCCL for everything else.

DDP compares the hook's annotations with its own classes, so they must not be postponed to strings.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future

from scant.errors import InvalidArgument
from scant.torch.backend.compiler import not_compiled
from scant.torch.backend.process_group import ProcessGroup
from scant.torch.gradient.averaging import Averaging, process_group_of
from scant.torch.gradient.same_model import Row, agreed, check_same, describe
from scant.torch.gradient.samples import Samples
from scant.torch.gradient.wrap_options import WrapOptions, given

__all__ = ["HookState", "ddp_hook"]


class HookState:
    """The plans of :func:`scant.torch.wrap` for a model of ``DistributedDataParallel``::

        state = scant.torch.HookState(dist.new_group(backend="scant"), plan="auto")
        model.register_comm_hook(state, scant.torch.ddp_hook)

    All ranks of the group make it at the same place: it compares their options.

    Args:
        group: a process group of the backend ``scant`` with the ranks of the model's own group.
        options: :class:`WrapOptions`, or single ones by name. DDP's own settings stand for
            ``unused``, ``buffer_bytes`` and ``broadcast_buffers``.

    DDP arranges its buckets anew after the first step; until then averages are exact, and what is
    not finite passes. It gives zeros for parameters that were not used, so a gradient of nothing
    but zeros counts as none: what was kept of it waits.
    """

    def __init__(self, group: Any, options: WrapOptions | None = None, **more: Any) -> None:
        self.group = group
        self._process_group = process_group_of(group)

        def look() -> tuple[WrapOptions, list[Row]]:
            chosen = _checked(options, more)
            return chosen, describe((), chosen.described())

        self.options, _ = agreed(look, lambda: group)
        self.last_step: dict[str, Any] | None = None
        self._steps = 0
        self._samples = Samples()
        self._seen: list[torch.Tensor] = []
        self._averaging: Averaging | None = None
        self._places: dict[int, int] = {}
        # Places and gradients of each bucket, its buffer, and what DDP waits for.
        self._waiting: list[
            tuple[list[tuple[int, torch.Tensor]], torch.Tensor, Future[torch.Tensor]]
        ] = []
        self._restored: bytes | None = None
        plan = self.options.plan
        self._keeps = not (isinstance(plan, str) and plan == "plain")  # there may be residuals

    def save(self) -> bytes:
        """This rank's residuals, for a checkpoint."""
        if self._averaging is None:
            return self._restored or b""
        return self._averaging.averager.save()

    def restore(self, state: bytes) -> None:
        """Before the first step, or between two."""
        self._restored = state or None
        self._keeps = True
        if self._averaging is not None:
            self._restore(self._averaging)

    def samples(self, count: int) -> None:
        """So many samples more are in the gradients of this rank's next average. The hook sees no
        forward: what is not said counts as 0."""
        self._samples.say(count)

    def close(self) -> None:
        """Ends what is under way."""
        if self._averaging is not None:
            self._averaging.close()

    def bucket(self, bucket: GradBucket) -> Future[torch.Tensor]:
        """What :func:`ddp_hook` does with a bucket."""
        if self._averaging is None:
            return self._first_steps(bucket)
        gradients = [
            (self._place(parameter), gradient)
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True)
        ]
        for place, gradient in gradients:
            if not (self._keeps and _is_zero(gradient)):
                self._averaging.put(place, gradient)
        future: Future[torch.Tensor] = Future()
        self._waiting.append((gradients, bucket.buffer(), future))
        if bucket.is_last():
            self._finish(self._averaging)
        return future

    def _first_steps(self, bucket: GradBucket) -> Future[torch.Tensor]:
        self._seen += bucket.parameters()
        future = _average(self._process_group, bucket)
        if not bucket.is_last():
            return future
        self._steps += 1
        self._samples.take()
        if self._steps == 1:
            self._seen.clear()
            return future
        names = [f"parameter {number}" for number in range(len(self._seen))]
        rows = describe(zip(names, self._seen, strict=True), self.options.described())
        check_same(rows, self.group)
        self._places = {id(one): number for number, one in enumerate(self._seen)}
        self._averaging = Averaging(self._seen, names, self.options, self.group)
        if self._restored is not None:
            self._restore(self._averaging)
        return future

    def _restore(self, averaging: Averaging) -> None:
        assert self._restored is not None
        averaging.averager.restore(self._restored)
        self._restored = None

    def _place(self, parameter: torch.Tensor) -> int:
        try:
            return self._places[id(parameter)]
        except KeyError:
            raise InvalidArgument(
                f"ddp_hook: a parameter of shape {tuple(parameter.shape)} was not there in the "
                "first two steps; use a new HookState for another model"
            ) from None

    def _finish(self, averaging: Averaging) -> None:
        """All buckets are there: waits, and gives DDP the averages."""
        waiting, self._waiting = self._waiting, []
        self._steps += 1
        averaging.finish(self._seen, self._steps, self._samples.take())
        self.last_step = averaging.wait()
        for gradients, buffer, future in waiting:
            for place, gradient in gradients:
                gradient.copy_(averaging.views[place])
            future.set_result(buffer)


def _checked(options: WrapOptions | None, more: dict[str, Any]) -> WrapOptions:
    """The options, once this rank has found nothing wrong by itself."""
    chosen = replace(given("HookState", options, more), unused="zeros")
    if chosen.step_in_forward:
        raise InvalidArgument("HookState: step_in_forward is for scant.torch.wrap()")
    return chosen


def _is_zero(gradient: torch.Tensor) -> bool:
    """The first element tells of most that they are not."""
    return not (gradient.as_strided((), ()) or any(torch.aminmax(gradient)))


@not_compiled
def ddp_hook(state: Any, bucket: GradBucket) -> Future[torch.Tensor]:
    """Average each bucket of gradients over a Scant group::

        group = dist.new_group(backend="scant")
        model = DistributedDataParallel(model)          # on gloo or NCCL
        model.register_comm_hook(group, scant.torch.ddp_hook)

    Args:
        state: a process group of the backend ``scant`` with the ranks of the model's own group:
            averages are exact. Or a :class:`HookState`: as its plan says.
        bucket: what DDP passes.

    A lost peer ends ``backward()`` with a RuntimeError that names it.
    """
    if isinstance(state, HookState):
        return state.bucket(bucket)
    if not isinstance(state, ProcessGroup):
        raise InvalidArgument(
            "ddp_hook: state must be a process group of the backend 'scant', such as "
            "dist.new_group(backend='scant'), or a scant.torch.HookState; got "
            f"{type(state).__name__}"
        )
    return _average(state, bucket)


def _average(group: ProcessGroup, bucket: GradBucket) -> Future[torch.Tensor]:
    opts = dist.AllreduceOptions()
    # DDP divides by the world size only without a hook; the average does it here, in the reduction.
    opts.reduceOp = dist.ReduceOp(dist.ReduceOp.AVG)
    future = group.allreduce([bucket.buffer()], opts).get_future()
    return future.then(_first)


def _first(future: Future[list[torch.Tensor]]) -> torch.Tensor:
    return future.value()[0]
