"""Test doubles that ship: a simulated disk, clocks, fault injection."""
