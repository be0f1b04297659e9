"""What gRPC's and etcd's errors mean to torus.

Decides three things about a request that failed: what to tell the caller, whether another member
may be asked, and whether it certainly had no effect.  A request with effects whose outcome is
not certain is never sent again.

Source: etcd's api/v3rpc/rpctypes/error.go for the texts and codes.
"""

from enum import Enum, auto
from typing import Any

from torus.errors import ConfigError, PermissionDenied, PoolFull, TorusError, Unavailable

_TOKEN_IS_OLD = ("invalid auth token", "revision in header is old", "user name is empty")
# etcd looks for its leader before it looks at a request; gRPC for a connection before it sends one
_NOT_LOOKED_AT = ("etcdserver: no leader", "failed to connect to all addresses")
_OUTCOME = "whether a change was made is unknown"


class Failure(Enum):
    """What can be done about a failed request."""

    MEMBER = auto()  # this member did not answer: the outcome is unknown
    REFUSED_EARLY = auto()  # this member cannot serve now; certainly nothing happened
    TOKEN = auto()  # the password must be shown again; certainly nothing happened
    LEASE = auto()  # the lease is not there; certainly nothing happened
    COMPACTED = auto()  # the revision is no longer kept
    FINAL = auto()  # asking again is no use


def failure(exc: Any) -> Failure:
    """Say what kind of failure a ``grpc.RpcError`` is."""
    code, details = status(exc)
    if code == "UNAUTHENTICATED" or any(text in details for text in _TOKEN_IS_OLD):
        return Failure.TOKEN
    if code == "NOT_FOUND" and "lease" in details:
        return Failure.LEASE
    if code == "OUT_OF_RANGE" and "compacted" in details:
        return Failure.COMPACTED
    if code == "UNAVAILABLE" and details.startswith(_NOT_LOOKED_AT):
        return Failure.REFUSED_EARLY
    final = ("PERMISSION_DENIED", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNIMPLEMENTED")
    if code in final or "space exceeded" in details:
        return Failure.FINAL
    return Failure.MEMBER


def meaning(exc: Any, place: str) -> TorusError:
    """Return the torus error for a ``grpc.RpcError`` of the store at ``place``."""
    code, details = status(exc)
    said = f"{details or 'no answer'} ({code})"
    if code == "PERMISSION_DENIED":
        return PermissionDenied(
            f"metadata store {place} refuses: {said}",
            hint="grant the user's role readwrite on the prefix: etcdctl role grant-permission",
        )
    if "authentication failed" in details or code == "UNAUTHENTICATED":
        return PermissionDenied(
            f"metadata store {place} does not know this user or password: {said}",
            hint="check --meta-user and --meta-password-file",
        )
    if "user name is empty" in details:
        return PermissionDenied(
            f"metadata store {place} asks for a user",
            hint="give --meta-user and --meta-password-file",
        )
    if "space exceeded" in details:
        return PoolFull(
            f"metadata store {place} has reached its quota: nothing was changed",
            hint="etcdctl defrag, then etcdctl alarm disarm; or raise --quota-backend-bytes",
        )
    if "too many operations" in details or "too large" in details:
        return ConfigError(
            f"metadata store {place} has lower bounds than etcd's own: {details}",
            hint="start etcd without --max-txn-ops and --max-request-bytes, or with greater ones",
        )
    return Unavailable(
        f"metadata store {place} did not answer: {said}; {_OUTCOME}",
        hint="look at etcd: torus meta status",
    )


def status(exc: Any) -> tuple[str, str]:
    """Return the name of a ``grpc.RpcError``'s code and its text."""
    code = exc.code() if callable(getattr(exc, "code", None)) else None
    details = exc.details() if callable(getattr(exc, "details", None)) else str(exc)
    return getattr(code, "name", "UNKNOWN"), details or ""
