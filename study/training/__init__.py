"""Training of one network, without Ray and MLflow: batches, networks, losses, metrics."""
