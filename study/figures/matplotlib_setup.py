"""Matplotlib as it comes, whatever the user's own configuration of it says.

A backend of a notebook that is not installed here, `text.usetex` without LaTeX or a file that
cannot be read would end a command over a picture; a style would change what our pictures show.
A notebook that imports `study` keeps its own settings: these hold while our figures are drawn.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def ignore_user_settings() -> None:
    """Have matplotlib start in this process, and in those it starts, as it comes."""
    os.environ["MPLBACKEND"] = "agg"  # draws into memory, and comes with matplotlib
    package = importlib.util.find_spec("matplotlib")
    for place in (package.submodule_search_locations or []) if package else []:
        os.environ["MATPLOTLIBRC"] = str(Path(place) / "mpl-data" / "matplotlibrc")


@contextmanager
def default_settings() -> Iterator[None]:
    """Draw with matplotlib's own settings, then go back to those that were."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield
