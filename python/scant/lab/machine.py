"""What this machine can do for the lab: the table of ``scant lab --check``."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil

from scant.lab.errors import LabError
from scant.lab.lab import Lab
from scant.lab.options import LinkOptions, Loss


@dataclasses.dataclass(frozen=True)
class Finding:
    """One row: what was looked at, whether it is there, and what that means."""

    name: str
    present: bool
    meaning: str


def _attempt(link: LinkOptions, mode: str, delay_method: str = "auto") -> str | None:
    """None when a lab with such links can be built, else why not."""
    try:
        with Lab(2, link, mode=mode, delay_method=delay_method):
            return None
    except LabError as error:
        return str(error)


def examine() -> tuple[list[Finding], bool]:
    """All findings, and whether shaped links are possible at all."""
    found = [
        Finding("kernel", True, f"{platform.release()} {platform.machine()}"),
        Finding("root", os.geteuid() == 0, "else a user namespace is tried"),
    ]
    for tool in ("ip", "tc", "bridge"):
        path = shutil.which(tool)
        found.append(Finding(tool, path is not None, path or "apt-get install iproute2"))
    probes: dict[str, bool] = {}
    mode = "none"
    try:
        with Lab(1) as lab:
            mode = lab.mode
            probes = lab.request("probe")
            reason = f"as {'root' if mode == 'root' else 'root of a user namespace'}"
    except LabError as error:
        reason = str(error)
    isolated = mode != "none"
    found.append(Finding("network namespaces", isolated, reason))
    needed = {
        "tbf": "shapes the links (CONFIG_NET_SCH_TBF)",
        "htb": "shapes them where tbf is absent (CONFIG_NET_SCH_HTB)",
        "netem": "delay in the kernel (CONFIG_NET_SCH_NETEM)",
    }
    for kind, meaning in needed.items():
        found.append(Finding(kind, probes.get(kind, False), meaning))
    if not isolated:
        found.append(Finding("fallback", True, "loopback with SCANT_RATE_LIMIT; no delay, no loss"))
        return found, False
    why = _attempt(LinkOptions(loss=Loss.uniform(0.5)), mode)
    found.append(Finding("loss", why is None, why or "XDP program in the driver of veth"))
    relay = _attempt(LinkOptions(rate_bits_per_second=10**8, delay_seconds=0.001), mode, "relay")
    found.append(
        Finding("relay", relay is None, relay or "AF_PACKET and cls_bpf: delay without netem")
    )
    method = "netem" if probes.get("netem") else "relay" if relay is None else None
    found.append(Finding("delay", method is not None, f"by {method}" if method else "not possible"))
    return found, probes.get("tbf", False) or probes.get("htb", False)
