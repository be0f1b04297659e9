"""The cluster's small state: one interface, several backends (docs/metadata.md)."""
