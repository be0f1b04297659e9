"""Sockets: addresses, listeners."""
