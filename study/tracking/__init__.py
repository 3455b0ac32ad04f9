"""Everything that uses MLflow: runs, notes, figures, the model registry."""
