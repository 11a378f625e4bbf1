"""What judges of answers are made of: numbers, choices, functions tried on random inputs, and things with a property.

A judge says whether an answer is right, and a word that helps where it is not. What it finds is about the answer, never
about its writer. A judge never raises: an answer that makes no sense, or that raises itself, is a wrong one.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, Protocol

import torch

from robattr._yaml import one_line

__all__ = ["Judge", "Verdict", "choice", "choices", "function", "number", "numbers", "parts", "thing", "unit"]

DIGITS = 3
"""Significant digits that an answer needs; the last may be rounded or cut off."""
ROUNDING = 1e-9
"""Of a function's results, relative to the largest: its inputs are of moderate size and have at most some hundred
values, so sums in float64 (unit roundoff 1.1e-16) stay below 1e-12. Results in float32 are refused by it."""


@dataclass(frozen=True)
class Verdict:
    """What :func:`robattr.exercises.check` says of an answer.

    Attributes:
        right: whether the answer is right.
        word: one line: what is wrong with it, or what to take home.
    """

    right: bool
    word: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{'Right' if self.right else 'Not yet'}: {self.word}"


class Judge(Protocol):
    """Judges answers to one exercise, or to a part of it."""

    @property
    def form(self) -> str:
        """What an answer looks like, in a few words."""

    def __call__(self, answer: object, /) -> Verdict:
        """The verdict on an answer."""


@dataclass(frozen=True)
class _Judge:
    form: str
    judge: Callable[[Any], Verdict]

    def __call__(self, answer: object, /) -> Verdict:
        try:
            return self.judge(answer)
        except Exception as error:  # an answer may raise whatever its writer's code raises
            return _wrong(f"the answer raises {type(error).__name__}: {one_line(error)}; wanted is {self.form}")


def _right(word: str) -> Verdict:
    return Verdict(True, word)


def _wrong(word: str) -> Verdict:
    return Verdict(False, word)


# --- numbers ---------------------------------------------------------------------------------------------------------


def unit(value: float) -> float:
    """One unit of the last digit that an answer needs: of the third significant one; 1e-9 of zero."""
    return 10.0 ** (math.floor(math.log10(abs(value))) - DIGITS + 1) if value else 1e-9


def number(value: float, *, wrong: Mapping[float, str] | None = None, exact: bool = False, word: str = "yes") -> Judge:
    """Judges a number.

    Args:
        value: the right one.
        wrong: what is said of wrong ones that are well known.
        exact: it has to be this number, up to 1e-9 of it; else its first three digits, rounded or cut off.
        word: what is said of the right one.
    """
    known = dict(wrong or {})

    def judge(answer: object) -> Verdict:
        got = _number(answer)
        if isinstance(got, str):
            return _wrong(got)
        if _near(got, value, exact):
            return _right(word)
        # The nearest of them: a unit of the third digit of one may reach to another.
        for each in sorted(known, key=lambda each: abs(got - each)):
            if _near(got, each, False):
                return _wrong(known[each])
        return _wrong(_compared(got, value))

    return _Judge("a number", judge)


def numbers(
    *values: float,
    wrong: Mapping[tuple[float, ...], str] | None = None,
    exact: bool = False,
    word: str = "yes",
) -> Judge:
    """Judges several numbers in a row, such as a map of a few pixels; arguments as for :func:`number`."""
    known = dict(wrong or {})
    count = len(values)

    def judge(answer: object) -> Verdict:
        got = _row(answer)
        if isinstance(got, str):
            return _wrong(f"{got}; wanted are {count} numbers in a row")
        if len(got) != count:
            return _wrong(f"these are {len(got)} numbers; wanted are {count}")
        if all(_near(a, b, exact) for a, b in zip(got, values, strict=True)):
            return _right(word)
        for each, said in known.items():
            if all(_near(a, b, False) for a, b in zip(got, each, strict=True)):
                return _wrong(said)
        if len(set(values)) > 1 and all(_near(a, b, exact) for a, b in zip(got, reversed(values), strict=True)):
            return _wrong("the numbers are right, their order is reversed")
        place, (a, b) = next(
            (i, pair) for i, pair in enumerate(zip(got, values, strict=True), 1) if not _near(*pair, exact)
        )
        return _wrong(f"number {place}: {_compared(a, b)}")

    return _Judge(f"{count} numbers", judge)


def _number(answer: object) -> float | str:
    """The answer as a float, or what is wrong with it."""
    if isinstance(answer, str):
        if "%" in answer:
            return "a share is a number from 0 to 1 here, without a percent sign"
        try:
            answer = float(Fraction(answer.strip()))
        except (ValueError, ZeroDivisionError):
            return f"{answer!r} is no number; wanted is one such as 0.25, 1/4 or '1/4'"
    if isinstance(answer, torch.Tensor):
        if answer.numel() != 1:
            return f"these are {answer.numel()} numbers; wanted is one"
        answer = answer.item()
    if answer is None or answer is ...:
        return "there is no answer yet"
    if isinstance(answer, (bool, Sequence, Mapping, set)) or callable(answer):
        return f"{_kind(answer)} is no number; wanted is one such as 0.25"
    value = float(answer)  # type: ignore[arg-type]
    return value if math.isfinite(value) else f"{value} is not finite; is something divided by zero?"


def _kind(answer: object) -> str:
    name = type(answer).__name__
    return f"a{'n' * (name[0].lower() in 'aeiou')} {name}"


def _row(answer: object) -> list[float] | str:
    if isinstance(answer, (str, bytes, Mapping, set)) or not hasattr(answer, "__iter__"):
        if answer in (None, ...):
            return "there is no answer yet"
        return f"{_kind(answer)} is no row of numbers"
    items = answer.flatten().tolist() if isinstance(answer, torch.Tensor) else list(answer)
    if len(items) == 1 and hasattr(items[0], "__iter__") and not isinstance(items[0], str):
        return _row(items[0])
    found = []
    for each in items:
        value = _number(each)
        if isinstance(value, str):
            return value
        found.append(value)
    return found


def _near(got: float, value: float, exact: bool) -> bool:
    return abs(got - value) <= (1e-9 * max(1.0, abs(value)) if exact else unit(value) * (1 + 1e-9))


def _compared(got: float, value: float) -> str:
    """How a wrong number differs from the right one, in a word that does not tell it."""
    if value and got:
        quotient = got / value

        def close(to: float) -> bool:
            return abs(quotient - to) <= 0.01 * abs(to)

        if close(-1):
            return f"{got:.4g} has the right size and the wrong sign"
        if abs(quotient - 1) <= 0.05:
            return f"{got:.4g} is near, but not within a unit of the third digit; round less on the way"
        if close(100):
            return f"{got:.4g} looks like percent; give the share, a number from 0 to 1"
        if close(2) or close(0.5):
            return f"{got:.4g} is wrong by a factor of 2"
        if abs(got * value - 1) <= 0.01:
            return f"{got:.4g} is the reciprocal of what is asked for"
        if got > 0 and value > 0 and abs(got / value**2 - 1) <= 0.01:
            return f"{got:.4g} is the square of what is asked for"
        if got > 0 and value > 0 and abs(got**2 / value - 1) <= 0.01:
            return f"{got:.4g} is the root of what is asked for"
        if quotient < 0:
            return f"{got:.4g} has the wrong sign"
    return f"{got:.4g} is too {'large' if got > value else 'small'}"


# --- choices ---------------------------------------------------------------------------------------------------------


def choice(right: str, words: Mapping[str, str]) -> Judge:
    """Judges a choice of one.

    Args:
        right: the key of the right option.
        words: what is said of each option, the right one too.
    """

    def judge(answer: object) -> Verdict:
        got = _key(answer)
        if got not in words:
            return _wrong(_unknown(got, list(words)))
        return Verdict(got == right, words[got])

    return _Judge(f"one of {', '.join(words)}", judge)


def choices(right: str, words: Mapping[str, str], *, word: str = "yes") -> Judge:
    """Judges a choice of some, which may be none.

    Args:
        right: the letters of those that belong to it.
        words: what is said of each option where it is missing, or chosen though it does not belong to it.
        word: what is said where all are right.
    """
    wanted = set(right)

    def judge(answer: object) -> Verdict:
        if answer in (None, ...):
            return _wrong(f"there is no answer yet; wanted are some of {', '.join(words)}")
        if isinstance(answer, str):
            found = {_key(each) for each in re.findall(r"\w+", answer)}
            if len(found) == 1 and not found <= set(words):
                found = set(next(iter(found)))
        elif isinstance(answer, (Sequence, set, frozenset)):
            found = {_key(each) for each in answer}
        else:
            return _wrong(f"{_kind(answer)} is no choice; wanted are some of {', '.join(words)}, as in 'ab'")
        for each in sorted(found - set(words)):
            return _wrong(_unknown(each, list(words)))
        for each in words:
            if each in found - wanted:
                return _wrong(f"not {each}: {words[each]}")
            if each in wanted - found:
                return _wrong(f"{each} belongs to it: {words[each]}")
        return _right(word)

    return _Judge(f"some of {', '.join(words)}", judge)


def _key(answer: object) -> str:
    return str(answer).strip().strip("().'\"").lower()


def _unknown(got: str, options: list[str], kind: str = "option") -> str:
    near = get_close_matches(got, options, 1)
    return f"{got!r} is no {kind}; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(options)}")


# --- parts, functions, things ----------------------------------------------------------------------------------------


def parts(**judges: Judge) -> Judge:
    """Judges a dictionary, each value by a judge of its own; the word is about the first that is wrong."""
    form = "{" + ", ".join(f'"{name}": {judge.form}' for name, judge in judges.items()) + "}"

    def judge(answer: object) -> Verdict:
        if not isinstance(answer, Mapping):
            return _wrong(f"there is no answer yet; wanted is {form}" if answer in (None, ...) else f"wanted is {form}")
        for name in answer:
            if name not in judges:
                return _wrong(_unknown(str(name), list(judges), "part"))
        for name, each in judges.items():
            if name not in answer:
                return _wrong(f"{name} is missing; wanted is {form}")
            found = each(answer[name])
            if not found:
                return _wrong(f"{name}: {found.word}")
        said = [each(answer[name]).word for name, each in judges.items()]
        return _right("; ".join(dict.fromkeys(word for word in said if word != "yes")) or "yes")

    return _Judge(form, judge)


Inputs = Callable[[torch.Generator], tuple[Any, ...]]
"""Draws the arguments of one call."""


def function(
    right: Callable[..., Any],
    draw: Inputs,
    *,
    signature: str,
    edges: Sequence[tuple[Any, ...]] = (),
    wrong: Sequence[tuple[Callable[..., Any], str]] = (),
    draws: int = 12,
    rounding: float = ROUNDING,
    word: str = "yes",
) -> Judge:
    """Judges a function by what it returns for random arguments, and for those at the edge.

    Args:
        right: a right one.
        draw: arguments for one call.
        signature: how it is called and what it returns, in words.
        edges: arguments that are easily forgotten; they come last.
        wrong: functions that are well known to be wrong, and what is said of one that returns the same.
        draws: how often it is tried.
        rounding: how far results may be from the right ones, relative to the largest of them or to 1.
        word: what is said of a right one.
    """

    def calls() -> Iterator[tuple[Any, ...]]:
        generator = torch.Generator().manual_seed(20)
        yield from (draw(generator) for _ in range(draws))
        yield from edges

    def judge(answer: object) -> Verdict:
        if not callable(answer):
            return _wrong(f"wanted is a function, {signature}; this is {_kind(answer)}")
        first = ""
        results = []
        for arguments in calls():
            wanted = right(*copy.deepcopy(arguments))
            try:
                results.append(answer(*copy.deepcopy(arguments)))
            except Exception as error:
                return _wrong(f"for {_shown(arguments)} it raises {type(error).__name__}: {one_line(error)}")
            said = _difference(results[-1], wanted, rounding)
            if said and not first:
                first = f"for {_shown(arguments)} {said}"
        if not first:
            return _right(word)
        for each, said in wrong:
            if all(_same(each, arguments, got, rounding) for arguments, got in zip(calls(), results, strict=True)):
                return _wrong(said)
        return _wrong(first)

    return _Judge(f"a function, {signature}", judge)


def _same(function: Callable[..., Any], arguments: tuple[Any, ...], got: Any, rounding: float) -> bool:
    try:
        return not _difference(got, function(*copy.deepcopy(arguments)), rounding)
    except Exception:
        return False


def _difference(got: Any, wanted: Any, rounding: float) -> str:
    """What is wrong with a result; nothing where it is right."""
    if isinstance(wanted, str):
        return "" if str(got).strip().lower() == wanted else f"it returns {got!r}, which should be {wanted!r}"
    if got is None:
        return "it returns nothing; is there a return?"
    a, b = (
        each.detach().double() if isinstance(each, torch.Tensor) else torch.as_tensor(each, dtype=torch.float64)
        for each in (got, wanted)
    )
    if a.shape != b.shape:
        return f"it returns the shape {list(a.shape)}, which should be {list(b.shape)}"
    # A mistake of a right function's author, or a wrong function that is known to divide by zero.
    both = a.isnan() & b.isnan()
    if bool((a.isfinite() | both).logical_not().any() and not torch.equal(a, b)):
        return f"it returns {_shown((a,))}: not finite"
    scale = max(1.0, float(b.nan_to_num().abs().max())) if b.numel() else 1.0
    if bool(((a - b).abs().masked_fill(both, 0) <= rounding * scale).all()):
        return ""
    if bool(((a - b).abs().masked_fill(both, 0) <= 1e-4 * scale).all()):
        return (
            f"it is right to four digits only: {_shown((a,))}, which should be {_shown((b,))}; keep float64 throughout"
        )
    return f"it returns {_shown((a,))}, which should be {_shown((b,))}"


def _shown(values: tuple[Any, ...]) -> str:
    """Arguments or results in one line."""

    def show(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            if value.ndim and value.numel() > 8:
                return f"a tensor of shape {list(value.shape)}"
            return str(torch.round(value.double(), decimals=4).tolist())
        return f"{value:.4g}" if isinstance(value, float) else getattr(value, "__name__", repr(value))

    return ", ".join(show(value) for value in values)


def thing(form: str, fault: Callable[[Any], str], *, word: str) -> Judge:
    """Judges anything by what is wrong with it.

    Args:
        form: what an answer looks like.
        fault: what is wrong with an answer, in one line; nothing where it is right.
        word: what is said of a right one.
    """

    def judge(answer: object) -> Verdict:
        if answer is None or answer is ...:
            return _wrong(f"there is no answer yet; wanted is {form}")
        said = fault(answer)
        return _wrong(said) if said else _right(word)

    return _Judge(form, judge)
