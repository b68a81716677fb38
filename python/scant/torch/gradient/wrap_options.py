"""Options of :func:`scant.torch.wrap`, and what a plan may be called."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from scant import _scant, planes
from scant.codec import points
from scant.errors import InvalidArgument
from scant.torch.gradient.ssfusion import ssfusion

__all__ = ["PLANS", "WrapOptions", "given", "plan_from", "with_plan"]

PLANS = (
    "auto, plain, bf16, fp16, q8, q4, q3, q2, q1, a density with one of them, such as '1% q4' or "
    "'1% q4, gather', factors of matrices, such as 'rank 32 of q4', also with a rest, such as "
    "'rank 8 q1' or 'rank 8 of q4, 5% q4', and 'ssfusion 1%' or 'adtopk 1%', also with one of "
    "them: 'adtopk 1% q4'"
)
_PERCENT = r"(?P<percent>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)%"
_GATHER = ", gather"
_PUBLISHED = re.compile(rf"(?P<rule>ssfusion|adtopk) {_PERCENT}(?: (?P<values>[a-z0-9]+))?")
_OF_RANK_0 = ("log", "metrics_port", "tensorboard")
_UNUSED = ("error", "zeros")
_NONFINITE = ("auto", "error", "pass")
_RESIDUALS = ("f32", "bf16", "i8", "none")


@dataclass(frozen=True)
class WrapOptions:
    """What :func:`scant.torch.wrap` can be told; the defaults are right for most.

    Args:
        plan: how gradients travel. ``auto``: as the measured link, model and machine ask for, never
            slower than plain. ``plain``: averaged exactly, as f32. ``bf16``, ``fp16``, ``q8`` to
            ``q1``: in so many bits, both ways, what is rounded away being kept for the next step.
            ``"1% q4"``: only the largest of 1 %, and the rest later; ``"1% q4, gather"``: every
            rank's to every rank. ``"rank 32 of q4"``: of each matrix two thin factors, in so many
            bits; ``"rank 8 q1"``: with factors in 8 bits, and in one bit what they leave.
            ``"ssfusion 1%"`` and ``"adtopk 1%"``: as these systems choose the 1 %, for comparison.
            Or a :class:`scant._scant.FusionPlan`.
        fidelity_min: for ``auto``: the least share of the gradients' energy that a plan may keep in
            a step, 0 to 1; 1: exact averages only.
        buffer_bytes: gradients travel in buffers of about so many bytes (as f32); for plans that
            are named, as ``auto`` and a FusionPlan have buffers of their own.
        first_buffer_bytes: of the first buffer, so that sending begins early.
        residual: how what was not sent is kept: ``f32``, ``bf16``, ``i8`` or, not for ``auto``,
            ``none``.
        residual_decay: of what is kept, each step; below 1 it is forgotten in time.
        unused: a parameter that gets a gradient on some ranks only is an ``error``, or counts as
            ``zeros`` on the others. One that gets none on any rank keeps ``grad`` as it was.
        nonfinite: a gradient with NaN or infinities is an ``error`` on every rank that names the
            tensor and the rank it came from, or may ``pass``: then averages hold them too, as in
            plain training. ``auto``: it passes where every rank has an enabled
            ``torch.amp.GradScaler``, which skips such steps, and is an error elsewhere.
        step_in_forward: ``optimizer.step()`` only takes note; each parameter is stepped when the
            next forward reaches it, so that gradients travel meanwhile. Needs the optimizer given
            to ``wrap``. Call ``settle()`` before gradients or parameters are looked at otherwise.
        workers: threads that encode and decode while backward goes on.
        check_every: so many steps between comparisons of all ranks' parameters; 0: never.
        broadcast_buffers: rank 0's buffers (running means and the like) go to all before each
            forward in training, as ``DistributedDataParallel`` does.
        seed: of random draws; the same on all ranks.
        log: rank 0 writes there what was measured and chosen, for ``scant explain`` and ``scant
            top``.
        metrics_port: rank 0 answers Prometheus there, on this host alone.
        tensorboard: folder where rank 0 writes scalars for TensorBoard.
    """

    plan: Any = "auto"
    fidelity_min: float = 0.0
    buffer_bytes: int = 25 << 20
    first_buffer_bytes: int = 1 << 20
    residual: str = "f32"
    residual_decay: float = 1.0
    unused: str = "error"
    nonfinite: str = "auto"
    step_in_forward: bool = False
    workers: int = 1
    check_every: int = 100
    broadcast_buffers: bool = True
    seed: int = 1
    log: str | None = None
    metrics_port: int | None = None
    tensorboard: str | None = None

    def __post_init__(self) -> None:
        planes.need("sync")
        if not isinstance(self.plan, str | _scant.FusionPlan):
            raise InvalidArgument(f"plan: a name or a FusionPlan, got {self.plan!r}")
        if isinstance(self.plan, str) and not self.automatic:
            _parse(self.plan)
        if self.residual not in _RESIDUALS:
            raise InvalidArgument(
                f"residual: one of {', '.join(_RESIDUALS)}, got {self.residual!r}"
            )
        if self.unused not in _UNUSED:
            raise InvalidArgument(f"unused: error or zeros, got {self.unused!r}")
        if self.nonfinite not in _NONFINITE:
            raise InvalidArgument(f"nonfinite: auto, error or pass, got {self.nonfinite!r}")
        for name in ("residual_decay", "fidelity_min"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InvalidArgument(f"{name} must lie in 0 to 1, got {value}")
        if self.fidelity_min > 0 and not self.automatic:
            raise InvalidArgument(
                f"fidelity_min={self.fidelity_min} bounds what plan='auto' may choose, but "
                f"plan={self.plan!r} was given"
            )
        for name, least in (
            ("buffer_bytes", 1),
            ("first_buffer_bytes", 1),
            ("workers", 1),
            ("check_every", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidArgument(f"{name}: a whole number from {least} on, got {value!r}")
        self._check_that_all_count()

    def _check_that_all_count(self) -> None:
        """What was given must not be without effect, nor undo what something else needs."""
        named = isinstance(self.plan, str) and not self.automatic
        for name in ("buffer_bytes", "first_buffer_bytes"):
            value = getattr(self, name)
            if not named and value != getattr(WrapOptions, name):
                whose = "plan='auto'" if self.automatic else "a FusionPlan"
                raise InvalidArgument(
                    f"{name}={value} is for plans that are named; {whose} has buffers of its own"
                )
        if self.residual != "none":
            return
        if self.automatic:
            raise InvalidArgument(
                "residual='none' drops what was not sent, but plan='auto' counts on its being sent "
                "later; name a plan to train without"
            )
        if self.residual_decay < 1:
            raise InvalidArgument(
                f"residual_decay={self.residual_decay} is of what is kept, but residual='none' "
                "keeps nothing"
            )

    @property
    def automatic(self) -> bool:
        """Whether the planner chooses."""
        return isinstance(self.plan, str) and self.plan == "auto"

    def described(self) -> dict[str, str]:
        """What all ranks must have alike."""
        rows = {
            field.name: repr(getattr(self, field.name))
            for field in fields(self)
            if field.name not in _OF_RANK_0
        }
        if isinstance(self.plan, _scant.FusionPlan):
            text = repr(self.plan.buffers).encode()
            rows["plan"] = f"a FusionPlan of hash {hashlib.sha256(text).hexdigest()[:16]}"
        return rows


def given(who: str, options: WrapOptions | None, more: dict[str, Any]) -> WrapOptions:
    """What a call was told, as an object or by name."""
    if options is not None and more:
        raise InvalidArgument(f"{who}: give options= or single options by name, not both")
    if options is not None and not isinstance(options, WrapOptions):
        raise InvalidArgument(f"{who}: options: WrapOptions are needed, got {options!r}")
    known = [field.name for field in fields(WrapOptions)]
    for name in more:
        if name not in known:
            raise TypeError(f"{who}: no option {name!r}; there are: {', '.join(known)}")
    return options or WrapOptions(**more)


class _Named(NamedTuple):
    """What a plan's name says."""

    rule: str  # "", "ssfusion" or "adtopk"
    path: str
    density: float
    values: str


def _parse(text: str) -> _Named:
    if text == "plain":
        return _Named("", "all_reduce", 1.0, "f32")
    published = _PUBLISHED.fullmatch(text)
    rule, name = published["rule"] if published else "", text.removesuffix(_GATHER)
    if published:
        name = f"{published['percent']}% {published['values'] or 'bf16'}"
    point = points.named(name)
    if isinstance(point, str):
        raise InvalidArgument(f"plan: {point.format(text)}; there are {PLANS}")
    path = "gather" if published or name != text else "split"
    return _Named(rule, path, point.density, point.text)


def with_plan(options: WrapOptions, plan: Any) -> WrapOptions:
    """These options with another plan, without those that are not for it."""
    if isinstance(plan, str) and plan != "auto":
        return replace(options, plan=plan, fidelity_min=0.0)
    return replace(
        options,
        plan=plan,
        fidelity_min=options.fidelity_min if isinstance(plan, str) else 0.0,
        buffer_bytes=WrapOptions.buffer_bytes,
        first_buffer_bytes=WrapOptions.first_buffer_bytes,
    )


def plan_from(options: WrapOptions, layout: _scant.GradientLayout) -> _scant.FusionPlan:
    """The plan that the options ask for."""
    if isinstance(options.plan, _scant.FusionPlan):
        return options.plan
    rule, path, density, values = _parse(options.plan)
    sizes = (options.buffer_bytes, options.first_buffer_bytes)
    if rule == "ssfusion":
        return ssfusion(layout, density, values, *sizes)
    if rule == "adtopk":
        values += _scant.by_row
    return _scant.FusionPlan.uniform(layout, path, density, values, *sizes, 2048)
