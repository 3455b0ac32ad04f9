"""Adds the tasks in this folder, and the README's example, to the package's, in every process that
has it on its path.

The command, Ray and its workers inherit PYTHONPATH, so a study of such a task is a real one.
"""

from pathlib import Path

import study.tasks

HERE = Path(__file__).parent
study.tasks.__path__ += [str(HERE / "tasks"), str(HERE.parent.parent / "docs" / "example")]
