"""A block device as a log of records: map, log, checkpoints, recovery."""
