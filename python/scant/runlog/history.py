"""The lines of one run, sorted by what they tell; grows line by line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from scant.runlog.lines import Guard, Line, Note, Plan, Profile, Run, Served, Steps

__all__ = ["Choice", "History"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A plan line and the profile that it rests on, if there is one."""

    plan: Plan
    profile: Profile | None


@dataclasses.dataclass
class History:
    """All lines of one run, its ``Run`` line first."""

    run: Run | None = None
    choices: list[Choice] = dataclasses.field(default_factory=list)
    profiles: list[Profile] = dataclasses.field(default_factory=list)
    steps: list[Steps] = dataclasses.field(default_factory=list)
    served: list[Served] = dataclasses.field(default_factory=list)
    guards: list[Guard] = dataclasses.field(default_factory=list)
    notes: list[Note] = dataclasses.field(default_factory=list)
    last: Line | None = None

    @staticmethod
    def of(lines: Iterable[Line]) -> History:
        history = History()
        for line in lines:
            history.add(line)
        return history

    def add(self, line: Line) -> None:
        if isinstance(line, Run):
            self.run = line
        elif isinstance(line, Profile):
            self.profiles.append(line)
        elif isinstance(line, Plan):
            self.choices.append(Choice(line, self.profile))
        elif isinstance(line, Steps):
            self.steps.append(line)
        elif isinstance(line, Served):
            self.served.append(line)
        elif isinstance(line, Guard):
            self.guards.append(line)
        elif isinstance(line, Note):
            self.notes.append(line)
        self.last = line

    @property
    def profile(self) -> Profile | None:
        """The newest."""
        return self.profiles[-1] if self.profiles else None

    @property
    def choice(self) -> Choice | None:
        """The newest."""
        return self.choices[-1] if self.choices else None

    @property
    def changes(self) -> list[Choice]:
        """The first choice and those that brought another plan."""
        return [one for i, one in enumerate(self.choices) if i == 0 or one.plan.changed]

    @property
    def plain_s(self) -> float | None:
        """Plain's step time, newest word."""
        said: list[Profile | Guard] = [*self.profiles, *self.guards]
        known = [one for one in said if one.plain_s is not None]
        return max(known, key=lambda one: one.at_s).plain_s if known else None

    def errors(self) -> list[tuple[Steps, float]]:
        """Of each stretch of steps that was predicted: how far off, as predicted ÷ measured − 1."""
        return [(one, one.error) for one in self.steps if one.error is not None]
