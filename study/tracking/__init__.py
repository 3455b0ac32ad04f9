"""Everything MLflow: runs, notes, figures, the model registry."""
