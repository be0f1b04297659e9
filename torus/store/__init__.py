"""One node's disk: segments, slots, durability."""
