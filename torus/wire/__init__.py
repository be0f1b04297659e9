"""The peer protocol without I/O (docs/protocol.md)."""
