"""Energy kept at equal bytes on captured gradients: the codec's points, its allocator, and others.

One step without a residual for all, so that the methods see the same values. Exact top-k sends f32
values with 32-bit indices over the whole model; PowerSGD's rank-r approximation is the best there
is (singular values), which is more than its power iteration reaches.
"""

from __future__ import annotations

from collections.abc import Sequence

import harness
import torch
from captured import Capture, capture

from scant import codec

POINTS = [
    (1.0, "bf16"), (1.0, "q8"), (1.0, "q4"), (1.0, "q3"), (1.0, "q2"), (1.0, "q1"),
    (0.25, "q4"), (0.1, "bf16"), (0.1, "q4"), (0.05, "q4"), (0.01, "f32"), (0.01, "bf16"),
    (0.01, "q4"), (0.001, "bf16"),
]  # fmt: skip
RANKS = (1, 2, 4, 8, 16)
DENSITIES = (0.2, 0.1, 0.05, 0.01, 0.001)
BUDGETS = (1.0, 0.5, 0.27, 0.14, 0.05, 0.02, 0.005)  # bytes an element


def energy(tensors: Sequence[torch.Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors)


def missing(original: Sequence[torch.Tensor], decoded: Sequence[torch.Tensor]) -> tuple[int, int]:
    """Tensors, and rows of matrices, that are not zero and of which nothing was sent."""
    tensors = rows = 0
    for a, b in zip(original, decoded, strict=True):
        tensors += int(bool(a.any()) and not bool(b.any()))
        if a.dim() > 1:
            own, sent = (t.reshape(t.shape[0], -1).any(1) for t in (a, b))
            rows += int((own & ~sent).sum())
    return tensors, rows


def outcome(
    method: str, gradient: Sequence[torch.Tensor], decoded: Sequence[torch.Tensor], size: float
) -> harness.Row:
    left = energy([a - b for a, b in zip(gradient, decoded, strict=True)])
    tensors, rows = missing(gradient, decoded)
    elements = sum(tensor.numel() for tensor in gradient)
    return {
        "case": "quality",
        "method": method,
        "bytes_per_element": size / elements,
        "energy_kept": 1 - left / energy(gradient),
        "missing_tensors": tensors,
        "missing_rows": rows,
    }


def encode_all(
    gradient: Sequence[torch.Tensor], points: Sequence[tuple[float, str]]
) -> tuple[list[torch.Tensor], float]:
    decoded, size = [], 0
    for number, (tensor, (density, values)) in enumerate(zip(gradient, points, strict=True)):
        encoder = codec.Encoder(tuple(tensor.shape), tensor=number, residual="none")
        record = encoder.encode(tensor, density, values)
        size += record.nbytes
        decoded.append(codec.decode(record, torch.empty_like(tensor)))
    return decoded, size


def top_k(gradient: Sequence[torch.Tensor], density: float) -> harness.Row:
    """Over the whole model, f32 values and 32-bit indices."""
    flat = torch.cat([tensor.flatten() for tensor in gradient])
    count = int(density * flat.numel())
    found = torch.from_numpy(codec.top_k(flat, count))
    kept = torch.zeros_like(flat)
    kept[found] = flat[found]
    parts = torch.split(kept, [tensor.numel() for tensor in gradient])
    decoded = [part.view_as(tensor) for part, tensor in zip(parts, gradient, strict=True)]
    return outcome(f"exact top {density:.1%}, f32", gradient, decoded, 8.0 * count)


def row_top_k(gradient: Sequence[torch.Tensor], density: float) -> harness.Row:
    """ADTopk's rule: of each row the largest, at least one; vectors as they are; 6 bytes a pair."""
    decoded, size = [], 0.0
    for tensor in gradient:
        if tensor.dim() == 1:
            decoded.append(tensor)
            size += 4.0 * tensor.numel()
            continue
        found = torch.from_numpy(codec.row_top_k(tensor, density))
        kept = torch.zeros_like(tensor).flatten()
        kept[found] = tensor.flatten()[found]
        decoded.append(kept.view_as(tensor))
        size += 6.0 * len(found)
    return outcome(f"row-wise top {density:.1%}, f32", gradient, decoded, size)


def low_ranks(gradient: Sequence[torch.Tensor]) -> list[harness.Row]:
    """One decomposition of each matrix serves all ranks."""
    matrices = [tensor.flatten(1) for tensor in gradient if tensor.dim() > 1]
    parts = [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    rows = []
    for rank in RANKS:
        found = iter(parts)
        decoded, size = [], 0.0
        for tensor in gradient:
            if tensor.dim() == 1:
                decoded.append(tensor)
                size += 4.0 * tensor.numel()
                continue
            u, s, v = next(found)
            decoded.append((u[:, :rank] * s[:rank] @ v[:rank]).view_as(tensor))
            size += 4.0 * rank * (u.shape[0] + v.shape[1])
        rows.append(outcome(f"PowerSGD rank {rank}", gradient, decoded, size))
    return rows


def run(step: int, recorder: harness.Recorder) -> None:
    """All methods on one captured gradient."""
    found: Capture = capture(step, 1)
    gradient = found.steps[0]
    elements = sum(tensor.numel() for tensor in gradient)
    rows = []
    for point in POINTS:
        decoded, size = encode_all(gradient, [point] * len(gradient))
        name = point[1] if point[0] == 1 else f"{point[0]:.1%} {point[1]}"
        rows.append(outcome(name, gradient, decoded, size))
    encoders = [codec.Encoder(tuple(tensor.shape), residual="none") for tensor in gradient]
    curves = [codec.probe(tensor, one) for tensor, one in zip(gradient, encoders, strict=True)]
    for budget in BUDGETS:
        chosen = codec.allocate(curves, budget * elements)
        points = [(point.density, point.values) for point in chosen.points]
        decoded, size = encode_all(gradient, points)
        row = outcome(f"allocator, {budget} bytes/element", gradient, decoded, size)
        rows.append(row | {"points": points, "predicted": chosen.energy / energy(gradient)})
    rows += [top_k(gradient, density) for density in DENSITIES]
    rows += [row_top_k(gradient, 0.01)]
    rows += low_ranks(gradient)
    halves = [tensor.half().float() for tensor in gradient]
    rows.append(outcome("fp16", gradient, halves, 2.0 * elements))
    for row in rows:
        recorder.add(row | {"step": step} | harness.machine())


def report(rows: Sequence[harness.Row]) -> str:
    """Methods by bytes, most first."""
    own = [row for row in rows if row["case"] == "quality"]
    if not own:
        return ""
    head = ["method", "bytes/element", "energy kept", "tensors without an entry", "rows"]
    lines = [
        [row["method"], f"{row['bytes_per_element']:.4f}", f"{row['energy_kept']:.4f}",
         str(row["missing_tensors"]), str(row["missing_rows"])]
        for row in sorted(own, key=lambda row: -float(row["bytes_per_element"]))
    ]  # fmt: skip
    return harness.markdown(head, lines)
