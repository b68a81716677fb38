"""`scant pack --bytes`: from a model and a budget to the file that loses least."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from scant import amounts, checks
from scant.errors import InvalidArgument
from scant.serve import calibration, choosing, packing
from scant.serve.calibration import Difference
from scant.serve.choosing import Chosen, Curve
from scant.serve.decoding import Model
from scant.serve.sources import GgufSource, Source
from scant.serve.text import Tokenizer

__all__ = ["BITS", "Result", "Wanted", "pack", "weigh"]

BITS = (2, 3, 4, 8, 16)
_COARSE = "q3"  # one group of matrices at a time has it, to see how much that matters
_READ, _HELD_OUT = 16, 8  # pieces of a text
_SENSED, _SENSED_TOKENS = 2, 128  # pieces, and tokens of each, that are read once for each group
_TEXT_BYTES_MAX = 64 << 20  # of a text, all of which becomes tokens before pieces are taken
_READ_SHARE = 0.8  # of a text that is not held out

Pieces = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Wanted:
    """A budget, and what is looked at."""

    bytes: int | None = None
    bits: int | None = None
    sparsity: float = 0.0
    calibrate: pathlib.Path | None = None  # a text; None: the model writes one
    held_out: pathlib.Path | None = None  # None: a part of that text
    threads: int = 1

    def options(self) -> str:
        """As the provenance tells them: no paths."""
        budget = f"bits {self.bits}" if self.bytes is None else f"bytes {self.bytes}"
        text = "own"
        if self.calibrate is not None:
            text = hashlib.sha256(_content(self.calibrate)).hexdigest()
        return f"{budget} sparsity {self.sparsity:g} text {text}"


@dataclass(frozen=True)
class Result:
    """What was chosen, and how much is lost by it."""

    curves: list[Curve]
    chosen: Chosen
    budget: int
    bytes: int
    difference: Difference
    held_out: str  # what text that was


@contextlib.contextmanager
def _beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder beside the file, on the same disk, for what is needed only meanwhile."""
    with tempfile.TemporaryDirectory(dir=path.resolve().parent, prefix=".scant-pack-") as name:
        yield pathlib.Path(name)


def _texts(model: Model, path: pathlib.Path, wanted: Wanted) -> tuple[Pieces, Pieces, str]:
    """Pieces to calibrate with, others to compare with, and what these are."""
    from scant.serve.model_engine import tokenizer_of

    context = model.description.context
    if wanted.calibrate is None and wanted.held_out is None:
        own = calibration.own_text(model, _READ + _HELD_OUT, wanted.threads)
        return own[:_READ], own[_READ:], "a text that the model wrote"
    tokenizer = tokenizer_of(path)
    held: Pieces = []
    said = ""
    if wanted.held_out is not None:
        tokens = _tokens(wanted.held_out, tokenizer)
        held = calibration.pieces_of(tokens, context, _HELD_OUT)
        said = str(wanted.held_out)
    if wanted.calibrate is None:
        return calibration.own_text(model, _READ, wanted.threads), held, said
    tokens = _tokens(wanted.calibrate, tokenizer)
    if held:
        return calibration.pieces_of(tokens, context, _READ), held, said
    cut = int(len(tokens) * _READ_SHARE)
    read = calibration.pieces_of(tokens[:cut], context, _READ)
    held = calibration.pieces_of(tokens[cut:], context, _HELD_OUT)
    return read, held, f"the last fifth of {wanted.calibrate}"


def _content(path: pathlib.Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _TEXT_BYTES_MAX:
            raise InvalidArgument(
                f"{path}: a text has at most {amounts.size(_TEXT_BYTES_MAX)}, and this has "
                f"{amounts.size(size)}; a part of it does"
            )
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror or error}") from None


def _tokens(path: pathlib.Path, tokenizer: Tokenizer) -> list[int]:
    content = _content(path)
    try:
        return tokenizer.encode(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: byte {error.start:,} is not UTF-8") from None


def write_coarse(source: Source, path: pathlib.Path) -> None:
    """All matrices with few bits. NaN and infinities are refused, and the tensor is named."""
    matrices = (one.name for one in source.tensors if packing.is_matrix(source, one))
    packing.pack(source, path, dict.fromkeys(matrices, packing.Choice(_COARSE)), "coarse")


def weigh(
    model: Model, coarse: Model, curves: Sequence[Curve], read: Pieces, threads: int
) -> list[Curve]:
    """Measures how much a coarse form of each group of matrices changes what the model says."""
    groups = choosing.groups_of(curves)
    names = [[one.tensor.name for one in group] for group in groups]
    pieces = [one[:_SENSED_TOKENS] for one in read[:_SENSED]]
    divergences = calibration.sensitivities(model, coarse, names, pieces, threads)
    return choosing.with_weights(groups, divergences, _COARSE)


def pack(
    source: Source,
    path: pathlib.Path,
    wanted: Wanted,
    step: Callable[[str], None] = lambda _: None,
) -> Result:
    """Writes the file, which appears when all is done. ``step`` is told what is being done.

    Raises :class:`scant.InvalidArgument` where the budget is below what any choice needs.
    """
    checks.whole(wanted.threads, "threads", 1, 4096, None)
    options = wanted.options()
    with _beside(path) as folder:
        coarse, file = folder / "coarse.scp", source.path
        step("writing a coarse form")
        write_coarse(source, coarse)
        if not isinstance(source, GgufSource):  # the engine runs files
            file = folder / "whole.scp"
            packing.pack(source, file, {}, "keep")
        model = Model(file)
        step("reading a text" if wanted.calibrate else "writing a text")
        read, held, said = _texts(model, file, wanted)
        sums = calibration.activations(model, read, wanted.threads)
        step("measuring what each point of each matrix loses")
        sparsity = wanted.sparsity or None
        curves = choosing.curves_of(source, sums, wanted.threads, sparsity)
        step("measuring how much each matrix matters")
        curves = weigh(model, Model(coarse), curves, read, wanted.threads)
        budget = wanted.bytes
        if budget is None:
            bits = wanted.bits or 4
            budget = choosing.as_bits(source, curves, bits, wanted.sparsity, options)
        if sparsity:
            curves = choosing.only_sparse(curves)
        chosen = choosing.choose(source, curves, budget, options)
        step("writing the file")
        ready = folder / "ready.scp"
        size = packing.pack(source, ready, chosen.choices, options)
        step("comparing")
        difference = calibration.compare(model, Model(ready), held, wanted.threads)
        try:
            ready.replace(path)
        except OSError as error:
            raise InvalidArgument(f"{path}: {error.strerror or error}") from None
    return Result(curves, chosen, budget, size, difference, said)
