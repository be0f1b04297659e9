"""Work on the data of a stopped node: check it, look into its files, rebuild its metadata.

The one door for the command line; what each does is decided in the modules named here.
"""

from torus.daemon.check import check_store
from torus.daemon.inspection import inspect_segment
from torus.daemon.recover import recover
from torus.daemon.recover_cluster import recover_cluster

__all__ = ["check_store", "inspect_segment", "recover", "recover_cluster"]
