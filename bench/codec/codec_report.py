"""Tables of rows of codecs.py, and the stated figures that they miss."""

from __future__ import annotations

from collections.abc import Sequence

import codec_hook
import codec_memory
import codec_quality
import harness

DECODE_SHARE_MIN = 0.6
PROBE_SHARE_MAX = 0.02
TOPK_SPEEDUP_MIN = 30.0


def spread(values: Sequence[float], digits: int = 2) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low}–{high})"


def report(rows: Sequence[harness.Row]) -> str:
    """All tables, of what was measured."""
    texts = [
        speed(rows),
        codec_memory.report(rows),
        codec_quality.report(rows),
        codec_hook.report(list(rows)),
    ]
    return "\n\n".join(text for text in texts if text)


def speed(rows: Sequence[harness.Row]) -> str:
    """Time and bytes of encoding, time of adding records."""
    if not any(row["case"] in ("encode", "decode") for row in rows):
        return ""
    head = ["encode", "gradients", "threads", "time ÷ memcpy (quartiles)", "limit", "ms",
            "bytes/entry", "entries ÷ wanted"]  # fmt: skip
    lines = [
        [row["encoding"], row["gradients"], str(row["threads"]), spread(row["ratio"]),
         f"{row['limit'] or '–'}", f"{row['seconds'][1] * 1e3:.1f}",
         f"{row['bytes_per_entry']:.3f}", f"{row['entries'] / row['wanted']:.3f}"]
        for row in rows if row["case"] == "encode"
    ]  # fmt: skip
    text = harness.markdown(head, lines)
    head = ["add 8 records", "gradients", "threads", "share of the memory limit", "ms"]
    lines = [
        [row["encoding"].split(",")[0], row["gradients"], str(row["threads"]),
         spread(row["share_of_memory_limit"]), f"{row['seconds'][1] * 1e3:.1f}"]
        for row in rows if row["case"] == "decode"
    ]  # fmt: skip
    text += "\n\n" + harness.markdown(head, lines)
    for row in rows:
        if row["case"] == "topk":
            text += f"\n\ntorch.topk and its residual update ÷ 1% bf16: {spread(row['speedup'], 1)}"
        if row["case"] == "probe":
            text += f"\n\nA probe of 56 points ÷ one q4 step: {spread(row['share_of_encode'], 4)}"
    return text


def gate(rows: Sequence[harness.Row]) -> list[str]:
    """The stated figures that were missed."""
    missed = []
    for row in rows:
        name = f"{row.get('encoding')}, {row.get('gradients')}, {row.get('threads')} threads"
        if row["case"] == "encode":
            if row["limit"] and row["ratio"][1] > row["limit"]:
                missed.append(f"{name}: {row['ratio'][1]:.2f} of a memcpy")
            if row["bytes_per_entry_max"] and row["bytes_per_entry"] > row["bytes_per_entry_max"]:
                missed.append(f"{name}: {row['bytes_per_entry']:.3f} bytes an entry")
        elif row["case"] == "decode" and row["share_of_memory_limit"][1] < DECODE_SHARE_MIN:
            missed.append(f"adding {name}: {row['share_of_memory_limit'][1]:.2f} of the limit")
        elif row["case"] == "topk" and row["speedup"][1] < TOPK_SPEEDUP_MIN:
            missed.append(f"torch.topk: {row['speedup'][1]:.1f} times as fast")
        elif row["case"] == "probe" and row["share_of_encode"][1] > PROBE_SHARE_MAX:
            missed.append(f"probe: {row['share_of_encode'][1]:.3f} of a step")
        elif row["case"] == "memory" and row["saved"] < row["saved_min"]:
            missed.append(f"memory with {row['optimizer']}: {row['saved']:.3f} saved")
    return missed
