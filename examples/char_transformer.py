"""A character transformer of 3.2 million parameters, trained with DistributedDataParallel.

An ordinary torchrun script: only ``--backend`` names the library that moves the gradients.

    torchrun --nproc-per-node 2 examples/char_transformer.py --backend scant

The text is Python's own standard library, which every machine has. Rank 0 writes a JSON line a
step.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import statistics
import sys
import sysconfig
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

TEXT_BYTES = 2_000_000
# All gradients in one bucket. PowerSGD's hook starts collectives in callbacks; those of several
# buckets come in another order on another rank, and gloo aborts.
WHOLE_MB = 25


def load_text() -> torch.Tensor:
    """The first bytes of the standard library's sources, in the order of their names."""
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    text = bytearray()
    for file in sorted(folder.glob("*.py")):
        text += file.read_bytes()
        if len(text) >= TEXT_BYTES:
            break
    return torch.frombuffer(text[:TEXT_BYTES], dtype=torch.uint8).long()


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and beside a residual path."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed(self.norm2(x))


class CharTransformer(nn.Module):
    """Bytes in, a distribution over the next byte out."""

    def __init__(self, width: int = 256, layers: int = 4, heads: int = 4, block: int = 64) -> None:
        super().__init__()
        self.heads = heads
        self.token = nn.Embedding(256, width)
        self.position = nn.Parameter(0.02 * torch.randn(block, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token(tokens) + self.position[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def save(model: CharTransformer, folder: pathlib.Path) -> None:
    """A Hugging Face folder of the GPT-2 family, which ``scant pack`` takes. Tokens are bytes."""
    from scant.journal import tensor_files

    state = model.state_dict()
    positions, width = state["position"].shape
    tensors = {
        "wte.weight": state["token.weight"], "wpe.weight": state["position"],
        "ln_f.weight": state["norm.weight"], "ln_f.bias": state["norm.bias"],
    }  # fmt: skip
    parts = {
        "norm1": "ln_1", "qkv": "attn.c_attn", "out": "attn.c_proj",
        "norm2": "ln_2", "feed.0": "mlp.c_fc", "feed.2": "mlp.c_proj",
    }  # fmt: skip
    for i in range(len(model.blocks)):
        for ours, theirs in parts.items():
            weight = state[f"blocks.{i}.{ours}.weight"]
            tensors[f"h.{i}.{theirs}.weight"] = weight.T if weight.dim() == 2 else weight
            tensors[f"h.{i}.{theirs}.bias"] = state[f"blocks.{i}.{ours}.bias"]
    tensors = {f"transformer.{name}": one for name, one in tensors.items()}
    tensors["lm_head.weight"] = state["head.weight"]
    config = {
        "model_type": "gpt2", "n_embd": width, "n_layer": len(model.blocks), "n_head": model.heads,
        "n_positions": positions, "vocab_size": len(state["token.weight"]),
        "layer_norm_epsilon": model.norm.eps, "activation_function": "gelu",
        "tie_word_embeddings": False,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    plain = {name: one.contiguous().numpy() for name, one in tensors.items()}
    rows = [(name, "F32", one.shape) for name, one in plain.items()]
    data = b"".join(one.tobytes() for one in plain.values())
    (folder / "model.safetensors").write_bytes(tensor_files.head(rows, {"format": "pt"}) + data)


def sample(text: torch.Tensor, draw: torch.Generator, batch: int, block: int) -> torch.Tensor:
    """Random sequences of block + 1 bytes: the input and, one further, what comes next."""
    at = torch.randint(len(text) - block - 1, (batch,), generator=draw)
    return torch.stack([text[i : i + block + 1] for i in at.tolist()])


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, window: torch.Tensor
) -> torch.Tensor:
    """One step of this rank; its loss before the step."""
    logits = model(window[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a character transformer.")
    parser.add_argument("--backend", default="gloo", help="gloo, scant, …")
    text = "of gradients: ddp, wrap (scant.torch.wrap), fp16 or powersgd-RANK (hooks of DDP)"
    parser.add_argument("--average", default="ddp", help=text)
    parser.add_argument("--bucket-mb", type=int, help="of DDP's buckets; default: torch's own")
    parser.add_argument("--run-log", help="of wrap, for scant explain and scant top")
    parser.add_argument("--steps", type=int, default=100)
    text = "stop before --steps, at this mean loss of the last --window steps"
    parser.add_argument("--until", type=float, help=text)
    parser.add_argument("--window", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="sequences of a rank and step")
    parser.add_argument("--block", type=int, default=64, help="bytes of a sequence")
    parser.add_argument("--rate", type=float, default=1e-3, help="AdamW's learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", help="file for one JSON line a step; default: standard output")
    parser.add_argument("--save", help="folder for the trained model, which scant pack takes")
    return parser.parse_args()


def averaged(
    model: nn.Module, how: str, bucket_mb: int | None = None, run_log: str | None = None
) -> nn.Module:
    """The model whose gradients are averaged over all ranks."""
    if how == "wrap":
        import scant.torch

        return scant.torch.wrap(model, log=run_log)
    powersgd = how.startswith("powersgd-")
    ddp = DistributedDataParallel(model, bucket_cap_mb=WHOLE_MB if powersgd else bucket_mb)
    if how == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif powersgd:
        # Compressing from the third step on, when DDP has settled its buckets.
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=int(how.removeprefix("powersgd-")),
            start_powerSGD_iter=2,
        )  # fmt: skip
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif how != "ddp":
        raise SystemExit(f"--average: no '{how}'")
    return ddp


def main() -> None:
    """Train; every rank draws its own samples, the gradients are averaged."""
    arguments = parse()
    if arguments.backend == "scant":
        import scant.torch  # noqa: F401  (registers the backend)
    torch.set_num_threads(1)
    dist.init_process_group(arguments.backend)
    rank = dist.get_rank()
    torch.manual_seed(arguments.seed)
    text = load_text()
    network = CharTransformer(block=arguments.block)
    model = averaged(network, arguments.average, arguments.bucket_mb, arguments.run_log)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate)
    draw = torch.Generator().manual_seed(arguments.seed * 1000 + rank)
    log = sys.stdout
    if rank == 0 and arguments.log:
        path = pathlib.Path(arguments.log)
        log = path.open("w")
    losses: list[float] = []  # the same on every rank, so that all stop together
    start, used = time.perf_counter(), time.process_time()
    for step in range(arguments.steps):
        began = time.perf_counter()
        window = sample(text, draw, arguments.batch, arguments.block)
        mean = train_step(model, optimizer, window).clone()
        dist.all_reduce(mean)
        losses.append(round(float(mean) / dist.get_world_size(), 5))
        if rank == 0:
            now = time.perf_counter()
            row = {
                "step": step,
                "loss": losses[-1],
                "step_s": round(now - began, 6),
                "wall_s": round(now - start, 6),
            }
            print(json.dumps(row), file=log, flush=True)
        if arguments.until and statistics.fmean(losses[-arguments.window :]) <= arguments.until:
            break
    cpu = torch.tensor([time.process_time() - used])
    dist.all_reduce(cpu)
    if rank == 0:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"cpu_s": round(float(cpu), 3), "peak_bytes": peak}), file=log, flush=True)
    if rank == 0 and arguments.save:
        save(network, pathlib.Path(arguments.save))
    dist.barrier()  # gloo's threads let go of the tensors above before the interpreter ends
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
