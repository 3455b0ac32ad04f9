"""Hyperparameter studies of vision tasks: Ray schedules, Optuna searches, MLflow remembers."""

import os
import sys

__version__ = "0.2.0"


def _pass_over_current_folder() -> None:
    """Take no file of the current folder for a library's: a `json.py` or `torch.py` there.

    `python -m` and the workers of Ray look there before all other places. What `PYTHONPATH` names
    stays, and so does the folder that this package lies in.
    """
    started = os.path.basename(sys.argv[0]) if sys.argv else ""  # "-m" while looking for a module
    try:
        places = ["", os.getcwd()]
    except OSError:  # it is gone
        places = [""]
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if started in ("-m", "default_worker.py"):
        for place in places:
            if place in sys.path and place != package:
                sys.path.remove(place)


_pass_over_current_folder()
