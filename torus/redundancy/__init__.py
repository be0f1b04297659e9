"""How many copies a chunk has and which of them are enough.  Pure."""
