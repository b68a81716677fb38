"""A checkpoint at every step: a base now and then, between them a log of the averaged gradients.

``docs/journal.md`` is the format; this module ties it to a training loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from scant import _scant, planes
from scant.closing import Closing
from scant.errors import Error, InvalidArgument, Refused
from scant.torch.checkpoint.members import Lock, Members, gather, join
from scant.torch.checkpoint.recorder import Recorder
from scant.torch.checkpoint.restore import Restored, agree, newest, replay, restore_base, warn_of
from scant.torch.checkpoint.training import Training
from scant.torch.gradient.same_model import check_same

__all__ = ["Journal", "Restored"]

_MODES = ("fast", "exact")
_LOADS = 5  # tries to read beside a writer


class Journal(Closing):
    """Keeps a training so that it can go on after any crash::

        journal = scant.Journal("run1.journal").attach(model, optimizer)
        journal.restore()                       # nothing on the first start

    Every optimizer step is logged from then on; every rank of a training makes one, with the same
    path. On a network file system all share it, else each host has its own.

    Args:
        path: a folder, which is made if its parent exists.
        job: a name; a journal that was begun under another is refused.
        base_every: steps from base to base, or ``"auto"``: by measured costs.
        log: ``"always"``, ``"never"`` (bases alone), or ``"auto"``: unless gradients that do not
            come as records cost more than 2 % of a step.
        unsynced_steps: so many at most may a power cut take; a killed process loses none.
        keep_bases: how many; of the older ones the logs stay too.
        staging_mb: of memory on each rank, through which bases go.
        replica: another folder, on another disk, that holds the same at every moment.
        on_error: ``"raise"`` out of the optimizer's step, or ``"warn"`` and train on without.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        job: str | None = None,
        base_every: int | str = "auto",
        log: str = "auto",
        unsynced_steps: int = 16,
        keep_bases: int = 2,
        staging_mb: int = 16,
        replica: str | os.PathLike[str] | None = None,
        on_error: str = "raise",
    ) -> None:
        planes.need("journal")
        self.path = pathlib.Path(path)
        self.job = job
        self.base_every = base_every
        self.log = log
        self.unsynced_steps = unsynced_steps
        self.keep_bases = keep_bases
        self.staging_bytes = staging_mb << 20
        self.replica = "" if replica is None else str(replica)
        self.on_error = on_error
        self._training: Training | None = None
        self._members: Members | None = None
        self._group: Any = None
        self._lock: Lock | None = None
        self._folder: _scant.JournalFolder | None = None
        self._recorder: Recorder | None = None
        self._found: dict[str, Any] | None = None  # the newest state, on every rank
        self._job = 0
        self._restored = False
        self._all_found: list[dict[str, Any]] = []  # of every folder
        self._last_step = 0  # when it was closed
        self._last_stats: dict[str, Any] = {}

    # -- what users call ------------------------------------------------------------------------

    def attach(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        cursor: Callable[[], Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        group: Any = None,
    ) -> Journal:
        """Watches this training. Every rank calls it, once its model has its first values.

        Args:
            model: plain, of ``scant.torch.wrap`` or ``DistributedDataParallel``.
            optimizer: any of torch, also as Lightning and accelerate wrap them, of all parameters
                that are trained; with ``step_in_forward`` it steps at ``step()`` again.
            cursor: gives the place in the data, as JSON can hold it, when a step is logged.
            extra: other small things with ``state_dict`` and ``load_state_dict``, by name:
                schedulers, a ``GradScaler``.
            group: of the ranks; default: the wrapped model's, or the default group.
        """
        training, mistake = None, None
        try:
            if self._training is not None:
                raise InvalidArgument("journal: attached already")
            self._check_options()
            training = Training(model, optimizer, cursor, extra or {})
            self.path.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass  # it may be written
        except Exception as error:
            if not dist.is_initialized():
                raise
            mistake = error
        wrapped = training.wrapped if training is not None else None
        self._group = group if group is not None else getattr(wrapped, "group", None)
        rows = training.described() if training is not None else []
        if dist.is_initialized():
            check_same([*rows, *self._options()], self._group, mistake)
        assert training is not None
        if self.log != "never":
            training.warn_of_gaps()
        self._members = join(self.path, self._group)
        self._training = training
        try:
            self._open()
        except BaseException:
            self._training = self._members = self._folder = None
            if self._lock is not None:
                self._lock.release()
            raise
        return self

    def restore(self, mode: str = "fast") -> Restored | None:
        """The newest state into model, optimizer and extra, on every rank; None: there is none yet.

        Args:
            mode: ``"fast"``: the base and every step of its log, parameters and optimizer to the
                bit; residuals as of the base. ``"exact"``: the base alone, with its residuals and
                random numbers; steps taken again from there are equal to the bit.
        """
        if mode not in _MODES:
            raise InvalidArgument(f"journal: mode is 'fast' or 'exact', got {mode!r}")
        if self._training is None or self._recorder is None:
            raise InvalidArgument("journal: attach() a model first")
        if self._restored or self._recorder.step > 0:
            raise InvalidArgument("journal: restore() comes once, before the first step")
        self._restored = True
        result = self._restore(mode)
        if result is None or result.replayed > 0:
            self._recorder.begin_base(waits=result is None)
        if result is not None and self._members is not None and self._members.leads:
            warn_of(result)
        return result

    @staticmethod
    def load(
        path: str | os.PathLike[str],
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: Mapping[str, Any] | None = None,
    ) -> Restored:
        """The newest state of a journal into a model and its optimizer, beside whoever writes it.

        So a newcomer catches up, or a script looks at a run. Residuals and random numbers stay as
        they are.
        """
        planes.need("journal")
        folder = _scant.JournalFolder(str(path), False)
        training = Training(model, optimizer, None, extra or {})
        manifest = pathlib.Path(path) / "MANIFEST"
        for left in reversed(range(_LOADS)):
            before = manifest.read_bytes() if manifest.exists() else b""
            try:
                result = _load(folder, pathlib.Path(path), training)
            except (Error, OSError):
                # What was read may have been removed when a newer base got its name.
                if left == 0 or (manifest.exists() and manifest.read_bytes() == before):
                    raise
                continue
            warn_of(result)
            return result
        raise AssertionError("unreachable")

    @property
    def step(self) -> int:
        """Optimizer steps so far, over all restarts."""
        return self._recorder.step if self._recorder is not None else self._last_step

    def stats(self) -> dict[str, Any]:
        """What the journal costs: see docs/journal.md."""
        return self._last_stats if self._recorder is None else self._recorder.stats()

    def sync(self) -> None:
        """Waits until every step so far survives a power cut."""
        if self._recorder is not None:
            self._recorder.sync()

    def close(self) -> None:
        """Ends what is under way: the last base, the last sync. Other writers may come then."""
        self._close(waits=True)

    def _left(self, error: BaseException | None) -> None:
        if error is None:
            self.close()
        else:  # others may be gone: nobody is waited for
            with contextlib.suppress(Error):
                self._close(waits=False)

    # -- inside ---------------------------------------------------------------------------------

    def _close(self, waits: bool) -> None:
        recorder = self._recorder
        self._last_step, self._last_stats = self.step, self.stats()
        self._recorder = None
        try:
            if recorder is not None:
                recorder.close(waits)
        finally:
            if self._lock is not None:
                self._lock.release()

    def _check_options(self) -> None:
        def bad(name: str, value: Any, wanted: str) -> InvalidArgument:
            return InvalidArgument(f"journal: {name} is {wanted}, got {value!r}")

        whole = isinstance(self.base_every, int) and not isinstance(self.base_every, bool)
        if not (self.base_every == "auto" or (whole and int(self.base_every) > 0)):
            raise bad("base_every", self.base_every, "'auto' or a number of steps")
        if self.log not in ("auto", "always", "never"):
            raise bad("log", self.log, "'auto', 'always' or 'never'")
        if self.on_error not in ("raise", "warn"):
            raise bad("on_error", self.on_error, "'raise' or 'warn'")
        for name in ("unsynced_steps", "keep_bases"):
            if getattr(self, name) < 1:
                raise bad(name, getattr(self, name), "at least 1")
        if self.staging_bytes < 2 << 20:
            raise bad("staging_mb", self.staging_bytes >> 20, "at least 2")

    def _options(self) -> list[tuple[str, str]]:
        names = ("job", "base_every", "log", "unsynced_steps", "keep_bases")
        return [(f"the journal's {name}", repr(getattr(self, name))) for name in names]

    def _open(self) -> None:
        """Lock and folder; what the folder's first rank finds there, all ranks of it learn."""
        assert self._training is not None and self._members is not None
        told: dict[str, Any] = {}
        error: Exception | None = None
        if self._members.leads:
            try:
                self._lock = Lock(self.path)
                self._folder = _scant.JournalFolder(str(self.path), True, self.replica, True)
                self._folder.clear_begun()
                told = newest(self._folder, self.path)
                self._check_identity(told)
                told["sequence"] = self._folder.fresh_sequence()
            except (Error, OSError) as problem:
                error = problem
        everyone = gather((told, None if error is None else str(error)), self._group)
        if error is not None:
            raise error
        for rank, (_, text) in enumerate(everyone):
            if text is not None:
                raise Refused(f"rank {rank}: {text}")
        jobs = {one["job"] for one, _ in everyone if one.get("job")}
        if len(jobs) > 1:
            raise Refused(f"journal: {self.path} is of different jobs on different hosts")
        fresh = everyone[0][0]["fresh_job"]  # rank 0 leads its folder
        self._job = jobs.pop() if jobs else fresh
        self._found = everyone[self._members.ranks[0]][0]
        self._all_found = [one for one, _ in everyone if one]
        if self._folder is None:
            self._folder = _scant.JournalFolder(str(self.path), True, self.replica)
        self._recorder = Recorder(
            self._training,
            self._members,
            self._group,
            self._folder,
            identity=(self._job, self._training.model_hash()),
            sequence=self._found["sequence"],
            options=self,
        )

    def _check_identity(self, found: dict[str, Any]) -> None:
        assert self._training is not None
        if found["model"] is not None and found["model"] != self._training.model_hash():
            raise Refused(
                f"journal: {self.path} is of another model (names, shapes or types differ)"
            )
        wanted = _job_of(self.job)
        if self.job is not None and found["job"] not in (None, wanted):
            raise Refused(f"journal: {self.path} is of another job than '{self.job}'")
        found["fresh_job"] = wanted or int.from_bytes(os.urandom(8), "little") | 1

    def _restore(self, mode: str) -> Restored | None:
        assert self._training is not None and self._members is not None
        assert self._folder is not None and self._recorder is not None
        base_step, step = agree(self._all_found, mode)
        self._recorder.restored = True
        if base_step is None:
            return None
        result, problem = None, None
        try:
            result = restore_base(self._training, self._folder, self.path, base_step, self._members)
            if mode == "fast":
                self._recorder.replays = True
                replay(self._training, self._folder, result, step)
        except Exception as error:
            problem = error
        finally:
            self._recorder.replays = False
        told = None if problem is None else f"{type(problem).__name__}: {problem}"
        everyone = gather(told, self._group)
        if problem is not None:
            raise problem
        for rank, text in enumerate(everyone):
            if text is not None:
                raise Refused(f"journal: rank {rank} could not be restored: {text}")
        assert result is not None
        result.problems = list(
            dict.fromkeys(text for one in self._all_found for text in one["problems"])
        )
        if self._members.leads:
            self._folder.sync_state(base_step)
        self._recorder.continue_at(result, took_back=step > result.step)
        return result


def _load(folder: _scant.JournalFolder, at: pathlib.Path, training: Training) -> Restored:
    found = newest(folder, at)
    if found["model"] is None:
        raise InvalidArgument(f"journal: {at} is empty")
    if found["model"] != training.model_hash():
        raise Refused(f"journal: {at} is of another model (names, shapes or types differ)")
    base_step, step = agree([found], "fast")
    assert base_step is not None
    result = restore_base(training, folder, at, base_step, None)
    replay(training, folder, result, step)
    result.problems = found["problems"]
    return result


def _job_of(name: str | None) -> int:
    if name is None:
        return 0
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") | 1
