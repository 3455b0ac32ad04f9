"""Errors with a cause outside this program: exceptions that are not bugs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in the user's input (flag, file, folder); the message says what to do."""


class TrialError(RuntimeError):
    """A trial cannot continue; the study does."""


class Diverged(TrialError):
    """A trial's loss is not finite, because of its own settings."""


class DamagedFile(RuntimeError):
    """A file of a study is missing or corrupted; the message names it."""


class StorageError(RuntimeError):
    """The disk is full or not writable. No trial is at fault, so the study stops."""


class StartError(RuntimeError):
    """Ray does not start on this machine; the message says where to look."""


class HoldLost(StorageError):
    """Another driver may have taken over the study, so this one must stop writing."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message that suggests the nearest known word."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}."
