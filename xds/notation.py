"""How the values of annotations are written: each kind's reading, writing and words.

Reading is strict. A value that is almost right is refused with what would be right, since a guess
would be somebody's incident; what is written is read back as the same value.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

Read: TypeAlias = Callable[[str], Any]  # raises ValueError with what would have been right
Write: TypeAlias = Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is read and written, and which values there are, in words."""

    read: Read
    values: str
    write: Write = str


def one_of(values: Iterable[str], made: Callable[[str], Any] = str) -> Kind:
    names = list(values)

    def read(text: str) -> Any:
        if text not in names:
            raise ValueError("one of " + ", ".join(names))
        return made(text)

    return Kind(read, ", ".join(names))


def of(kinds: type[Enum]) -> Kind:
    names = one_of([each.value for each in kinds], kinds)
    return Kind(names.read, names.values, lambda value: str(value.value))


def number(low: float, high: float, what: str) -> Kind:
    right = f"{what} from {low:g} to {high:g}"

    def read(text: str) -> float:
        if not re.fullmatch(r"[0-9]*\.?[0-9]+", text) or not low <= float(text) <= high:
            raise ValueError(right)
        return float(text)

    return Kind(read, f"{low:g} to {high:g}", _plain)


def whole(low: int, high: int, what: str) -> Kind:
    right = f"{what} from {low} to {high}"

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(right)
        return int(text)

    return Kind(read, f"{low} to {high}")


def factor(low: float, high: float) -> Kind:
    """Times something, kept in per cent."""
    times = number(low, high, "a factor")
    return Kind(
        lambda text: round(100 * times.read(text)),
        times.values,
        lambda per_cent: times.write(per_cent / 100),
    )


def seconds(low: float, high: float) -> Kind:
    def read(text: str) -> float:
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)(ms|s)", text)
        if not match:
            raise ValueError("seconds or milliseconds such as 0.2s or 200ms")
        value = float(match[1]) / (1000 if match[2] == "ms" else 1)
        if not low <= value <= high:
            raise ValueError(f"from {1000 * low:g}ms to {high:g}s")
        return value

    return Kind(read, f"{1000 * low:g}ms to {high:g}s", lambda value: f"{1000 * value:.6g}ms")


def truth() -> Kind:
    words = one_of(["true", "false"], lambda text: text == "true")
    return Kind(words.read, words.values, lambda value: "true" if value else "false")


def header() -> Kind:
    """The name of a header that may be hashed; ours are made by filters, after the client's."""

    def read(text: str) -> str:
        name = text.lower()
        if not re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}", name) or name.startswith("x-weir-"):
            raise ValueError("a request header's name, of at most 64 characters and not x-weir-…")
        return name

    return Kind(read, "a request header's name")


def _plain(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
