"""The NBD protocol, pure: handshake, rules of the transmission, metadata contexts."""
