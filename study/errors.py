"""The two kinds of failure that are not a bug of ours."""

from __future__ import annotations


class InputError(ValueError):
    """A mistake in what the user gave (flag, file, folder); the message says what to do."""


class TrialError(RuntimeError):
    """A trial that cannot go on, a loss that is not finite for one; the study goes on."""
