"""The kinds of failure that are not a bug of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in what the user gave (flag, file, folder); the message says what to do."""


class TrialError(RuntimeError):
    """A trial that cannot go on; the study goes on."""


class Diverged(TrialError):
    """A trial whose loss is not finite: it failed for its own settings."""


class DamagedFile(RuntimeError):
    """A file of ours is missing or not what was written; the message names it."""


class StorageError(RuntimeError):
    """The disk is full or cannot be written: no trial's fault, so the study stops and waits."""


class StartError(RuntimeError):
    """Ray does not start on this machine; the message says where to look."""


class HoldLost(StorageError):
    """Another driver may have taken the study over: this one must not write any more."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message that suggests the nearest known word."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}."
