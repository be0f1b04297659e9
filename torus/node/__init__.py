"""The front door for peers: a store served by the peer protocol."""
