"""torus: a distributed block store for container clusters and virtual machines."""

__version__ = "0.1.0"
