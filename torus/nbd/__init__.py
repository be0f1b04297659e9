"""The NBD protocol without I/O (docs/nbd.md)."""
