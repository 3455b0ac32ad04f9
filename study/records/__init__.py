"""Studies and trials on disk, and their copy for Optuna's tools."""
