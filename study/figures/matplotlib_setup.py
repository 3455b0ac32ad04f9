"""Matplotlib with default settings, regardless of the user's configuration.

A notebook backend that is not installed here, `text.usetex` without LaTeX or an unreadable file
would make a command fail over a figure; a style would change how our figures look. A notebook that
imports `study` keeps its own settings: the defaults apply only while our figures are drawn.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def ignore_user_settings() -> None:
    """Make matplotlib start with default settings in this process and its children."""
    os.environ["MPLBACKEND"] = "agg"  # draws into memory, and comes with matplotlib
    package = importlib.util.find_spec("matplotlib")
    for place in (package.submodule_search_locations or []) if package else []:
        os.environ["MATPLOTLIBRC"] = str(Path(place) / "mpl-data" / "matplotlibrc")


@contextmanager
def default_settings() -> Iterator[None]:
    """Draw with matplotlib's defaults, then restore the previous settings."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield
