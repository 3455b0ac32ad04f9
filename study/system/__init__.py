"""The process environment: streams, limits, control groups, and masking of secrets."""
