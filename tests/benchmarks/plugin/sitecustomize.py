"""Adds the tasks in this folder to the package's, in every process that has it on its path."""

from pathlib import Path

import study.tasks

study.tasks.__path__.append(str(Path(__file__).parent / "tasks"))
