"""Hyperparameter studies of vision tasks: Ray schedules, Optuna searches, MLflow remembers."""

import os
import sys

__version__ = "0.2.0"


def _ignore_current_folder() -> None:
    """Keep files of the current folder, say `json.py` or `torch.py`, from shadowing libraries.

    `python -m` and Ray's workers search the current folder first. Folders in `PYTHONPATH` stay,
    and so does the folder that contains this package.
    """
    started = os.path.basename(sys.argv[0]) if sys.argv else ""  # "-m" while looking for a module
    try:
        places = ["", os.getcwd()]
    except OSError:  # the folder was deleted
        places = [""]
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if started in ("-m", "default_worker.py"):
        for place in places:
            if place in sys.path and place != package:
                sys.path.remove(place)


_ignore_current_folder()
