"""The figures of one trial, drawn from the data in its folder and saved as files.

matplotlib takes a second to import and then reads the user's settings, so it is imported late.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from study.errors import DamagedFile
from study.records.run_folder import RunFolder, read_arrays
from study.storage.files import replacing
from study.storage.paths import AnyPath
from study.task import Task


def draw_run(
    folder: RunFolder,
    task: Task,
    metric: str,
    note: str,
    history: list[dict[str, float]],
    mode: str = "max",
) -> None:
    """Draw learning curves, including the study's metric, and the figures of the best epoch.

    Damaged data is left out and noted in the folder's `damage`.

    Raises:
        StorageError: The disk is full.
    """
    from study.figures.plots import learning_curves

    def drawn() -> dict[str, Any]:
        figures: dict[str, Any] = {}
        try:
            figures = dict(task.figures(read_arrays(folder.figure_data_file), note))
        except DamagedFile as error:
            folder.damage.append(f"{error} No figures of the best epoch can be drawn.")
        return {**figures, "learning_curves": learning_curves(history, metric, note, mode)}

    save_figures(drawn, folder.path / "figures")


def save_figures(draw: Callable[[], Mapping[str, Any]], folder: AnyPath) -> None:
    """Draw figures and write them as PNG files named by their keys.

    Drawing happens inside because matplotlib reads its settings while drawing and again while
    saving, and both must use the defaults.
    """
    from study.figures.matplotlib_setup import default_settings

    folder.mkdir(parents=True, exist_ok=True)
    with default_settings():
        for name, figure in draw().items():
            with replacing(folder / f"{name}.png") as file:
                # A third faster than zlib's default level, with files a tenth larger.
                figure.savefig(file, format="png", pil_kwargs={"compress_level": 2})
