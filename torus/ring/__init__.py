"""Where chunks belong: slots, members, versions.  Pure (docs/ring.md)."""
