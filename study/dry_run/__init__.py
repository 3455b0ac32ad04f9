"""Dry run: measures training steps and simulates the study."""
