"""A study run by Ray: the plan, trials and their workers, failures, stops, confirmations."""
