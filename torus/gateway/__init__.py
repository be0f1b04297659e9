"""The front door for clients: the NBD server."""
