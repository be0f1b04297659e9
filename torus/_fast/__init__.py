"""Compiled kernels: the hot paths of torus.  Built by setup.py; see docs/decisions/."""
