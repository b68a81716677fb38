"""A DDP communication hook for those who keep gloo or NCCL for everything else.

DDP compares the hook's annotations with its own classes, so they must not be postponed to strings.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future

from scant.errors import InvalidArgument
from scant.torch.compiler import not_compiled
from scant.torch.process_group import ProcessGroup

__all__ = ["ddp_hook"]


@not_compiled
def ddp_hook(state: Any, bucket: GradBucket) -> Future[torch.Tensor]:
    """Average each bucket of gradients over a Scant group::

        group = dist.new_group(backend="scant")
        model = DistributedDataParallel(model)          # on gloo or NCCL
        model.register_comm_hook(group, scant.torch.ddp_hook)

    Args:
        state: a process group of the backend ``scant`` with the ranks of the model's own group.
        bucket: what DDP passes.

    A lost peer ends ``backward()`` with a RuntimeError that names it.
    """
    if not isinstance(state, ProcessGroup):
        raise InvalidArgument(
            "ddp_hook: state must be a process group of the backend 'scant', such as "
            f"dist.new_group(backend='scant'); got {type(state).__name__}"
        )
    opts = dist.AllreduceOptions()
    # DDP divides by the world size only without a hook; the average does it here, in the reduction.
    opts.reduceOp = dist.ReduceOp(dist.ReduceOp.AVG)
    future = state.allreduce([bucket.buffer()], opts).get_future()
    return future.then(_first)


def _first(future: Future[list[torch.Tensor]]) -> torch.Tensor:
    return future.value()[0]
