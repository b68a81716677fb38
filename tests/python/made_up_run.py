"""A made-up run log: 1,200 steps on a link that falls from 1 Gb/s to 100 Mb/s and recovers.

``python tests/python/made_up_run.py run.jsonl [SECONDS]`` writes one to look at, a line each so
many seconds (0). The numbers are drawn from a seed and follow each other as a training's would.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from typing import Any

from scant.runlog import RunLog

ELEMENTS = 3_241_984
RANKS = 4
DENSE = 8 * ELEMENTS * (RANKS - 1) / RANKS
BACKWARD_S, REST_S = 0.21, 0.13
STRETCH = 20  # steps between agreements
STEPS = 1200
DROP, BACK = 400, 800  # where the link falls and recovers


def rate_at(step: int) -> float:
    """Bytes per second that a rank sends."""
    return 12.1e6 if DROP <= step < BACK else 118e6


def row(density: float, buffers: int, rate: float) -> dict[str, Any]:
    """A plan of so many bytes an element, costed by hand."""
    sent = DENSE * density / 4
    overlapped = BACKWARD_S * (1 - 1 / (buffers + 1))
    exposed = max(0.002, sent / rate - overlapped) + 0.0006 * buffers
    kept = 1.0 if density >= 4 else 1 - 0.045 / (1 + 9 * density)
    step = BACKWARD_S + REST_S + exposed
    progress = 1.0 if kept >= 0.99 else 1 - 4 * (0.99 - kept)
    kind = "plain" if density >= 4 else f"{density:.2g} bytes an element"
    return {
        "text": f"{kind} in {buffers} buffer{'s' if buffers > 1 else ''}",
        "step_s": step,
        "exposed_s": exposed,
        "sent_bytes": sent,
        "kept": kept,
        "worth": progress / step,
    }


def rows(rate: float) -> list[dict[str, Any]]:
    """All candidates, the best first."""
    found = [row(d, b, rate) for d in (4, 2, 1, 0.53, 0.26, 0.12) for b in (1, 2, 4, 8)]
    return sorted(found, key=lambda one: -one["worth"])


def choice(step: int, at_s: float, rate: float, running: str) -> list[dict[str, Any]]:
    """A profile and the plan that it asks for."""
    ranked = rows(rate)
    plain = max(
        (one for one in ranked if one["text"].startswith("plain")), key=lambda o: o["worth"]
    )
    return [
        {
            "kind": "profile",
            "step": step,
            "at_s": at_s,
            "backward_s": BACKWARD_S,
            "rest_s": REST_S,
            "rho": DENSE / rate / (BACKWARD_S + REST_S),
            "alpha_s": 0.00021,
            "bytes_per_s": rate,
            "contention": 0.34,
            "sending_s_per_byte": 4.1e-10,
            "slowest_rank": 2,
            "plain_s": plain["step_s"],
        },
        {
            "kind": "plan",
            "step": step,
            "at_s": at_s,
            "why": f"worth {ranked[0]['worth'] / plain['worth']:.2f} times plain, whose "
            f"{plain['exposed_s'] * 1e3:.0f} ms of waiting would not hide under backward",
            "changed": ranked[0]["text"] != running,
            "chosen": ranked[0],
            "others": ranked[1:13],
            "points": {"q4": 0.62, "1% q4": 0.31, "f32": 0.07},
        },
    ]


def lines(seed: int = 5, until: int = STEPS) -> Iterator[dict[str, Any]]:
    """The log's lines as objects."""
    draw = random.Random(seed)
    yield {
        "kind": "run",
        "step": 0,
        "at_s": 0.0,
        "version": 1,
        "scant": "0.1.0",
        "started": "2026-03-02T09:15:04Z",
        "ranks": RANKS,
        "tensors": 38,
        "elements": ELEMENTS,
        "host": "node-a",
        "pid": 4711,
        "options": {"plan": "auto", "fidelity_min": 0.9, "check_every": 100},
    }
    at_s, running = 0.4, row(4, 4, rate_at(0))
    for step in range(STRETCH, until + 1, STRETCH):
        rate = rate_at(step) * draw.uniform(0.97, 1.0)
        now = row(*size_of(running["text"]), rate)
        step_s = now["step_s"] * draw.gauss(1.01, 0.012)
        at_s += STRETCH * step_s
        yield {
            "kind": "steps",
            "step": step,
            "at_s": at_s,
            "steps": STRETCH,
            "step_s": step_s,
            "backward_s": BACKWARD_S * draw.gauss(1.02, 0.01),
            "exposed_s": step_s - BACKWARD_S - REST_S if step_s > 0.342 else 0.002,
            "encode_s": 0.04,
            "predicted_s": running["step_s"] if step > STRETCH else None,
            "sent_bytes": now["sent_bytes"],
            "predicted_bytes": now["sent_bytes"],
            "dense_bytes": DENSE,
            "kept": min(1.0, now["kept"] * draw.gauss(1, 0.001)),
            "residual": 0.0 if now["kept"] == 1 else draw.gauss(1.6, 0.05),
            "nonfinite": 0,
            "plan": running["text"],
            "measuring": step == STRETCH,
            "bytes_per_s": rate,
            "rho": DENSE / rate / (BACKWARD_S + REST_S),
        }
        if step == STRETCH or step % 200 == 0 or (step - DROP) % 400 == STRETCH:
            chosen = choice(step, at_s, rate, running["text"])
            yield from chosen
            running = chosen[1]["chosen"]
        if step == 600:
            yield {
                "kind": "guard",
                "step": step,
                "at_s": at_s,
                "why": "the residual grew for 200 steps: a higher fidelity is taken",
                "measured_s": step_s,
                "plain_s": row(4, 4, rate)["step_s"],
                "plan": running["text"],
            }
    yield {"kind": "note", "step": until, "at_s": at_s, "text": "parameters compared: alike"}


def size_of(text: str) -> tuple[float, int]:
    """Bytes an element and buffers of a row's text."""
    words = text.split()
    return (4.0, int(words[2])) if words[0] == "plain" else (float(words[0]), int(words[5]))


def main() -> None:
    """Writes the log."""
    pause_s = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    with RunLog(sys.argv[1]) as log:
        for line in lines():
            log.write(line)
            time.sleep(pause_s)


if __name__ == "__main__":
    main()
