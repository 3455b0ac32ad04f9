"""The user's environment, made one to work in: streams, limits, control groups, secrets masked."""
