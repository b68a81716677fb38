"""Options of one process group."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """``dist.init_process_group("scant", pg_options=scant.torch.Options(peer_timeout=5.0))``.

    What is None comes from the environment (:mod:`scant.environment`), else is Scant's default.
    A subgroup whose members share a communicator uses that communicator's options.
    """

    address: str | None = None
    port: int | None = None
    job: str | None = None
    peer_timeout: float | None = None
    connections_per_pair: int | None = None
    same_host_sockets: bool | None = None
    io_cpu: int | None = None
    rate_limit_bytes_per_second: int | None = None

    def given(self) -> dict[str, Any]:
        """The fields that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}
