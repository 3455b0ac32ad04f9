"""Sampler, early stopping (ASHA), search spaces and hyperparameter importance."""
