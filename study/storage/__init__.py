"""Atomic file writes, paths on disk and in S3, locks and claims, and the cache."""
