"""What bytes are on disk, pure (docs/format.md)."""
