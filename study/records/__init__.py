"""What a study and its trials leave on disk, and the copy of it for Optuna's tools."""
