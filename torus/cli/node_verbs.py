"""`torus node list|info|drain|remove|join|set`: the nodes and disks of a cluster.

Decides how they are shown and which words mean which of them.  What may be done to a member is
decided in `torus.daemon.member_change`.

Implements docs/cli.md, "torus node list" and the following.
"""

from torus.cli.parser import Parser


def declare_verbs(parser: Parser) -> None:
    """Add the verbs below `torus node`, which without one of them runs a node."""
