"""Hyperparameter studies of vision tasks: Ray schedules, Optuna searches, MLflow remembers."""

__version__ = "0.1.0"
