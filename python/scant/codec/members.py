"""A whole exchange of one tensor in one process, with the same bits as a round of real ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scant import _scant, checks
from scant.codec import checked, points
from scant.codec.decoding import accumulate, decode
from scant.codec.encoder import Encoder
from scant.codec.factors import Factors
from scant.errors import InvalidArgument

__all__ = ["Exchanged", "Members"]

_MEMBERS_MAX = 65535
_GATHER = ", gather"
_LEFT, _RIGHT = 0, 1
_FACTORS_FROM = (2**30, 2**31)  # numbers of tensors in records of left and right factors


@dataclass
class Exchanged:
    """What one exchange sent, and what all members have after it.

    Records are listed by member; those of a member by slice, in the order of the elements.
    """

    sent_bytes: list[int]  # by each member
    mean: Any = None  # what all members decode
    error: float = 0.0  # squared, of the mean, as a share of the energy of the exact mean
    left: list[list[_scant.Record]] = field(default_factory=list)
    basis: list[Any] = field(default_factory=list)  # of each part with factors, rank x rows
    coefficients: list[list[_scant.Record]] = field(default_factory=list)
    rest: list[list[_scant.Record]] = field(default_factory=list)  # or the elements, without a rank
    averages: list[_scant.Record] = field(default_factory=list)  # by owners, in order of travel

    @property
    def bytes(self) -> float:
        """Bytes that a member sent, as a mean over the members."""
        return sum(self.sent_bytes) / len(self.sent_bytes)


class Members:
    """Several members that exchange the gradients of one tensor at one point, step after step.

    ::

        members = codec.Members((512, 512), 4, "rank 8 of q8, q1")
        for gradients in steps:              # one array a member
            done = members.exchange(gradients)
            print(done.bytes, done.error)

    Each member keeps a residual, and the directions of the last step. Vectors, and matrices too
    small for factors, are sent like the rest of the point. If it has no rest, they are sent dense,
    with the values of its factors.

    Args:
        shape: of the tensor; the first dimension counts rows, one dimension is one row.
        members: how many.
        point: as plans are named: ``"q4"``, ``"1% q4"``, ``"rank 8 q1"``, ``"rank 32 of q4"``,
            ``"rank 8 of q4, 5% q4"``. Records go to owners, who send averages to all; with
            ``", gather"`` at the end all members send their records to all.
        part: number of the tensor's first part in its model; owners and first directions follow
            from it.
        owner: of a part that is too small to be cut; by default it follows from the part's number.
        tensor, residual, decay, seed, threads: as in :class:`Encoder`.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        members: int,
        point: str,
        *,
        part: int = 0,
        owner: int | None = None,
        tensor: int = 0,
        residual: str = "f32",
        decay: float = 1.0,
        seed: int = 1,
        threads: int = 1,
    ) -> None:
        self._shape = checked.as_shape(shape)
        self.members = checks.whole(members, "members", 1, _MEMBERS_MAX, None)
        parsed = points.named(str(point).removesuffix(_GATHER))
        if isinstance(parsed, str):
            raise InvalidArgument(f"point: {parsed.format(point)}")
        self.point = point
        self._decay = checked.number(decay, "decay", 0, 1)
        rows, columns = checked.fold(self._shape)
        options = {"tensor": tensor, "residual": residual, "decay": decay, "threads": threads}
        first_part = checks.whole(part, "part", 0, 2**30 - 1, None)
        if owner is not None:
            owner = checks.whole(owner, "owner", 0, self.members - 1, None)
        self._parts = []
        for number, first in enumerate(range(0, rows * columns, _scant.part_elements_max)):
            elements = min(_scant.part_elements_max, rows * columns - first)
            cut = _Cut(self.members, first_part + number, first, elements, owner)
            split = not point.endswith(_GATHER)
            self._parts.append(_Part((rows, columns), cut, parsed, split, seed, options))

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self._shape

    def exchange(self, gradients: Sequence[Any]) -> Exchanged:
        """One step, with one gradient of each member. The gradients do not change."""
        import numpy as np

        own = self._flat(gradients)
        wanted = self._could_be_sent(own)
        done = Exchanged([0] * self.members)
        for records in (done.left, done.coefficients, done.rest):
            records.extend([] for _ in range(self.members))
        mean = np.empty(len(own[0]), np.float32)
        with np.errstate(all="ignore"):  # such numbers are sent too
            for part in self._parts:
                begin, end = part.cut.first, part.cut.first + part.cut.elements
                part.exchange([one[begin:end] for one in own], mean[begin:end], done)
            energy, off = float(wanted @ wanted), mean - wanted
            done.error = float(off @ off) / energy if energy else float(off.any())
        done.mean = mean.reshape(self._shape)
        if checked.is_torch(gradients[0]):
            import torch

            done.mean = torch.from_numpy(done.mean)
        return done

    def residual(self, member: int) -> Any:
        """What one member has not sent yet, as a NumPy array."""
        number = checks.whole(member, "member", 0, self.members - 1, None)
        return self._kept(lambda part: part.workers[number])

    def owners_residual(self) -> Any:
        """What the owners' averages have not sent yet, as a part of the mean."""
        return self._kept(lambda part: part.owners)

    def __repr__(self) -> str:
        return f"<scant.codec.Members, {self.members} of {self._shape}: {self.point}>"

    def _kept(self, encoders_of: Any) -> Any:
        import numpy as np

        out = np.zeros(int(np.prod(self._shape)), np.float32)
        for part in self._parts:
            for encoder in encoders_of(part):
                first, elements = encoder.range
                out[first : first + elements] = encoder.residual().reshape(-1)
        return out.reshape(self._shape)

    def _flat(self, gradients: Sequence[Any]) -> list[Any]:
        """Copies, since steps with factors change them."""
        import numpy as np

        if len(gradients) != self.members:
            raise InvalidArgument(f"{len(gradients)} gradients of {self.members} members")
        own = []
        for number, gradient in enumerate(gradients):
            shape = checked.view(gradient, f"gradients[{number}]", write=False)[2]
            if shape != self._shape and checked.fold(shape) != checked.fold(self._shape):
                text = f"gradients[{number}] has shape {shape}, the members are of {self._shape}"
                raise InvalidArgument(text)
            host = gradient.detach().numpy() if checked.is_torch(gradient) else gradient
            own.append(np.array(host, np.float32).reshape(-1))
        return own

    def _could_be_sent(self, own: Sequence[Any]) -> Any:
        """In f64: the mean of gradients and residuals, plus what the owners kept."""
        import numpy as np

        total = np.zeros(len(own[0]))
        for number, gradient in enumerate(own):
            total += gradient
            total += self._decay * self.residual(number).reshape(-1)
        return total / self.members + self._decay * self.owners_residual().reshape(-1)


class _Cut(NamedTuple):
    """A part of a tensor, as a model's layout has it: docs/gradients.md, "Parts and slices"."""

    members: int
    part: int
    first: int  # of the tensor's elements
    elements: int
    owner: int | None  # of a part that is one slice

    def slices(self) -> list[tuple[int, int]]:
        """(begin, end) within the part."""
        ends = _scant.slice_ends(self.elements, self.members)
        return list(zip([0, *ends], ends, strict=False))

    def owner_of(self, index: int) -> int:
        """The owner of a slice."""
        one = len(self.slices()) == 1
        return self.owner if one and self.owner is not None else (index + self.part) % self.members

    def factor_slices(self, elements: int, side: int) -> Iterator[tuple[int, int, int]]:
        """(begin, end, owner) within a factor."""
        count = len(self.slices())
        ends = _scant.slice_ends(elements, count)
        for index, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            like = (self.part + side) % count if len(ends) == 1 else index
            yield begin, end, self.owner_of(like)


class _Part:
    """One part: encoders by member and slice, and the factors, which all members have alike."""

    def __init__(
        self,
        shape: tuple[int, int],
        cut: _Cut,
        wanted: points.Point,
        split: bool,
        seed: int,
        options: dict[str, Any],
    ) -> None:
        self.cut = cut
        self._split = split
        begin_row, end_row = cut.first // shape[1], (cut.first + cut.elements - 1) // shape[1]
        matrix = (end_row - begin_row + 1, shape[1])
        fitting = _scant.point_for(wanted.density, wanted.text, *matrix, cut.elements)
        self.point = points.Point(*fitting)

        point: dict[str, Any] = {"values": self.point.values}
        if self.point.density:
            point["density"] = self.point.density

        def encoders(member: int, index: int, as_owner: bool) -> Encoder:
            begin, end = cut.slices()[index]
            own = _scant.seed_of_member(seed, member, as_owner)
            where = (cut.first + begin, end - begin)
            return Encoder(shape, seed=own, range=where, **point, **options)

        count = range(len(cut.slices()))
        self.workers = [[encoders(m, i, False) for i in count] for m in range(cut.members)]
        averaged = split and self.point.density > 0
        self.owners = [encoders(cut.owner_of(i), i, True) for i in count] if averaged else []
        self.factors: Factors | None = None
        if self.point.rank:
            whole, drawn = (cut.first, cut.elements), _scant.directions_seed + cut.part
            threads = options["threads"]
            self.factors = Factors(shape, self.point.rank, seed=drawn, threads=threads, range=whole)

    def exchange(self, own: Sequence[Any], mean: Any, done: Exchanged) -> None:
        """One step of this part; `own` is changed, the average comes to `mean`."""
        if self.factors is None:
            self._elements(own, mean, done, None)
            return
        left = [
            self.factors.project(one, encoders)
            for one, encoders in zip(own, self.workers, strict=True)
        ]
        self.factors.set_basis(self._average(left, _LEFT, done)[1])
        done.basis.append(self.factors.basis)
        right = self._coefficients(self.factors, own)
        sent, average, lost = self._average(right, _RIGHT, done)
        self._elements(own, mean, done, sent)
        if average.any():
            self.factors.add(average, mean)
            self.factors.learn(average)
        self._settle(self.factors, lost)

    def _coefficients(self, factors: Factors, own: Sequence[Any]) -> list[Any]:
        """By member. Unusable ones become 0, or NaN if no rest is sent that holds all instead."""
        import numpy as np

        lost = np.nan if self.point.density == 0 else 0.0
        found = []
        for one, encoders in zip(own, self.workers, strict=True):
            right = factors.coefficients(one, encoders)
            none = np.full((factors.rank, factors.columns), lost, np.float32)
            found.append(none if right is None else right)
        return found

    def _average(
        self, factors: Sequence[Any], side: int, done: Exchanged
    ) -> tuple[list[Any], Any, list[Any]]:
        """Each factor as sent, the average that all decode, and by owner what its rounding lost."""
        import numpy as np

        records = (done.left, done.coefficients)[side]
        sent = [np.empty_like(one) for one in factors]
        lost = [np.zeros_like(one) for one in factors]
        average = np.empty_like(factors[0])
        for begin, end, owner in self.cut.factor_slices(average.size, side):
            how = Encoder(
                average.shape,
                tensor=_FACTORS_FROM[side] + self.cut.part,
                values=self.point.factors,
                residual="none",
                range=(begin, end - begin),
            )
            made = [how.encode(one.reshape(-1)[begin:end]) for one in factors]
            for member, record in enumerate(made):
                records[member].append(record)
                decode(record, sent[member].reshape(-1)[begin:end])
            whole = accumulate(made).reshape(-1)
            told = self._told(made, owner, whole, how, done)
            average.reshape(-1)[begin:end] = told
            rounding = whole - told
            rounding[~np.isfinite(rounding)] = 0
            lost[owner].reshape(-1)[begin:end] = rounding
        for one in sent:
            if np.isnan(one).any():  # was unusable; nothing of it was taken away
                one[:] = 0
        return sent, average, lost

    def _elements(
        self, own: Sequence[Any], mean: Any, done: Exchanged, sent: Sequence[Any] | None
    ) -> None:
        """Sends the elements, or the rest that the coefficients leave as they were sent."""
        if self.point.density == 0:
            mean[:] = 0
        for index, (begin, end) in enumerate(self.cut.slices()):
            made = []
            for member, one in enumerate(own):
                record = self._record(self.workers[member][index], one[begin:end], sent, member)
                if self.point.density > 0:
                    made.append(record)
                    done.rest[member].append(record)
            if made:
                whole = accumulate(made).reshape(-1)
                how = self.owners[index] if self._split else None
                mean[begin:end] = self._told(made, self.cut.owner_of(index), whole, how, done)

    def _record(
        self, encoder: Encoder, own: Any, sent: Sequence[Any] | None, member: int
    ) -> _scant.Record:
        if sent is None or self.factors is None:
            return encoder.encode(own)
        return encoder.encode_rest(self.factors, sent[member], own, self.point.density)

    def _told(
        self,
        made: Sequence[_scant.Record],
        owner: int,
        whole: Any,
        how: Encoder | None,
        done: Exchanged,
    ) -> Any:
        """The average as all members have it in the end. Counts the bytes of both legs."""
        others = self.cut.members - 1
        for member, record in enumerate(made):
            copies = int(member != owner) if self._split else others
            done.sent_bytes[member] += copies * record.nbytes
        if how is None or not self._split:
            return whole
        back = how.encode(whole)
        done.averages.append(back)
        done.sent_bytes[owner] += others * back.nbytes
        return decode(back).reshape(-1)

    def _settle(self, factors: Factors, lost: Sequence[Any]) -> None:
        """Adds what owners' rounding of coefficients lost to their own residuals."""
        import numpy as np

        for encoders, one in zip(self.workers, lost, strict=True):
            if not one.any():
                continue
            for encoder in encoders:
                first, elements = encoder.range
                product = np.zeros(elements, np.float32)
                factors.add(one, product, float(self.cut.members), (first, elements))
                most = np.float32(checked.F32_MAX)
                encoder.add_residual(product.clip(-most, most))
