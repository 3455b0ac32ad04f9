"""One file per task; `study.task.task_names` finds them by file name."""
