"""Tests the winner and exports it as a folder with a model card."""
