"""The next configuration (the sampler), which trial stops (ASHA), which parameters mattered."""
