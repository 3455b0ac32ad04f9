"""Files written whole or not at all, paths on disk and in S3, locks and claims, the cache."""
