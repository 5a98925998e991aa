"""What is said of a word that is none of those that are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def one_of(name: str, value: object, known: Sequence[str]) -> None:
    """``ValueError`` unless the value of an argument is one of these words.

    >>> one_of("ordering", "strikt", ("auto", "strict"))
    Traceback (most recent call last):
    ValueError: ordering must be one of 'auto', 'strict', not 'strikt'; did you mean 'strict'?
    """
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, not {value!r}{did_you_mean(value, known)}")


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The end of a message about a word that is unknown: the known one that looks most like it, or nothing.

    >>> did_you_mean("verfy", ("verify", "cat")), did_you_mean("cta", ("verify", "cat")), did_you_mean("x", ("verify", "cat"))
    ("; did you mean 'verify'?", "; did you mean 'cat'?", '')
    """
    if not isinstance(word, str):
        return ""
    from difflib import get_close_matches  # noqa: PLC0415 - for errors only

    words = {each.lower().strip("-"): each for each in known}
    word = word.lower().strip("-")
    found = get_close_matches(word, words, n=1, cutoff=0.75)
    found = found or [each for each in words if sorted(each) == sorted(word)]  # of three letters two are in another order
    return f"; did you mean {words[found[0]]!r}?" if found else ""
