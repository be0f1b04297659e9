"""The metadata store on etcd: for clusters of many machines.

Decides how the promises of `torus.metadata.base` are kept with etcd's requests: a commit is one
transaction that compares modification revisions, a listing is pages at one revision, revisions
are etcd's own.  Which member is asked, and what a failure means, is decided below
(`torus.metadata.etcd_link`, `torus.metadata.etcd_errors`).

Implements docs/metadata.md, "etcd".
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torus.clock import Clock, SystemClock
from torus.errors import NotFound, TorusError, Unavailable
from torus.limits import (
    ETCD_ATTEMPT_S,
    ETCD_COMPACT_EVERY,
    ETCD_HISTORY_REVISIONS,
    ETCD_LIST_ATTEMPTS_MAX,
    ETCD_PAGE_KEYS,
    METADATA_THREADS_MAX,
)
from torus.metadata import history, rules
from torus.metadata.base import Delete, Entry, Expect, Listing, Put
from torus.metadata.etcd_errors import Failure, failure, meaning
from torus.metadata.etcd_link import EtcdLink
from torus.metadata.etcd_url import EtcdAccess
from torus.metadata.etcd_watch import EtcdStreams, EtcdWatch
from torus.metadata.keys import MOVING
from torus.metadata.moved import refuse_unfinished


class EtcdMetadata:
    """A `MetadataStore` under one prefix of an etcd cluster."""

    threads_max = METADATA_THREADS_MAX  # each operation waits for the network alone

    def __init__(
        self,
        access: EtcdAccess,
        clock: Clock | None = None,
        *,
        create: bool = True,
        unfinished: bool = False,
    ) -> None:
        """Reach nothing yet; without ``create``, look whether a cluster's metadata is there.

        With ``unfinished``, metadata that is only half moved there may be used.

        Raises: NotFound when nothing is there and ``create`` is False; ConfigError,
            PermissionDenied, Unavailable.
        """
        self.access = access
        self._prefix = access.prefix.encode()
        self.link = EtcdLink(access, clock or SystemClock(), self._key(MOVING))
        if not unfinished:
            self.link.on_proof = lambda value: refuse_unfinished(value, access.place)
        self._messages = self.link.package.messages
        self._streams = EtcdStreams(self.link, access.prefix)
        self._compacted = 0
        if not create:
            try:
                self._require_content()
            except BaseException:
                self.close()
                raise

    def get(self, key: str) -> Entry | None:
        """Return the entry of ``key``, or None when there is none."""
        rules.check_key(key)
        found = self._range(key=self._key(key)).kvs
        return self._entry(found[0]) if found else None

    def list(self, prefix: str) -> Listing:
        """Return all entries whose key begins with ``prefix``, in the order of their keys."""
        rules.check_prefix(prefix)
        revision, found = self._everything(self._key(prefix))
        return Listing(revision, tuple(self._entry(one) for one in found))

    def list_lasting(self) -> Listing:
        """Return all entries of the store that are not under a lease, for moving them."""
        revision, found = self._everything(self._prefix)
        return Listing(revision, tuple(self._entry(one) for one in found if not one.lease))

    def commit(self, expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> int | None:
        """Apply all ``changes`` at once if every expectation holds; see `MetadataStore`.

        When it returns, a majority of etcd's members has it on disk.
        """
        rules.check_commit(expect, changes)
        request = self._messages.TxnRequest(
            compare=[self._comparison(one) for one in expect],
            success=[self._operation(one) for one in changes],
        )
        try:
            answer = self.link.ask(lambda member: member.kv.Txn, request, repeat=not changes)
        except self.link.package.grpc.RpcError as exc:
            leases = [one for one in changes if isinstance(one, Put) and one.lease is not None]
            if failure(exc) is Failure.LEASE and leases:
                raise rules.lease_ended(leases[0].lease or 0, leases[0].key) from exc
            raise self._unexpected(exc) from exc
        if not answer.succeeded:
            return None
        revision = int(answer.header.revision)
        self._compact(revision)
        return revision

    def watch(self, prefix: str, after_revision: int) -> EtcdWatch:
        """Watch changes under ``prefix`` with a revision greater than ``after_revision``."""
        rules.check_prefix(prefix)
        present = self._range(key=self._prefix, limit=1, keys_only=True).header.revision
        rules.check_watch_position(prefix, after_revision, 0, present)
        return self._streams.add(prefix, after_revision)

    def grant(self, ttl_s: float) -> int:
        """Make a lease that ends ``ttl_s`` seconds after its last renewal; return its id.

        etcd counts whole seconds, and has a least time of its own (2 s with its defaults).
        """
        ttl_ns = rules.lease_ttl_ns(ttl_s)
        request = self._messages.LeaseGrantRequest(TTL=math.ceil(ttl_ns / 1e9))
        try:
            # a lease that nobody learned of ends by itself, so asking twice does no harm
            answer = self.link.ask(
                lambda member: member.lease.LeaseGrant, request, repeat=True, linear=False
            )
        except self.link.package.grpc.RpcError as exc:
            raise self._unexpected(exc) from exc
        return int(answer.ID)

    def renew(self, lease: int) -> bool:
        """Renew a lease; False when it has ended already."""
        request = self._messages.LeaseKeepAliveRequest(ID=lease)
        try:
            answer = self.link.ask(
                lambda member: _Single(member.lease.LeaseKeepAlive, lease),
                request,
                repeat=True,
                linear=False,
            )
        except self.link.package.grpc.RpcError as exc:
            if failure(exc) is Failure.LEASE:
                return False
            raise self._unexpected(exc) from exc
        return bool(answer.TTL > 0)

    def revoke(self, lease: int) -> None:
        """End a lease now, with all its keys; idempotent."""
        request = self._messages.LeaseRevokeRequest(ID=lease)
        try:
            self.link.ask(
                lambda member: member.lease.LeaseRevoke, request, repeat=True, linear=False
            )
        except self.link.package.grpc.RpcError as exc:
            if failure(exc) is not Failure.LEASE:
                raise self._unexpected(exc) from exc

    def history_token(self, token: str = "") -> str:
        """Return what `check_not_older` can tell an older copy by; see `torus.metadata.history`.

        ``token`` is the one that the caller has kept so far.
        """
        return history.make_token(self, token)

    def check_not_older(self, token: str) -> None:
        """Refuse this etcd if it is an older copy of what ``token`` was made from.

        Raises: Corruption, ForeignData.
        """
        history.check_token(self, token)

    def position(self) -> tuple[int, int]:
        """Return etcd's own cluster id and its present revision."""
        header = self._range(key=self._prefix, limit=1, keys_only=True).header
        return int(header.cluster_id), int(header.revision)

    def close(self) -> None:
        """End all calls and watches; idempotent."""
        self.link.close()
        self._streams.close()

    def _require_content(self) -> None:
        found = self._range(key=self._prefix, range_end=_end(self._prefix), limit=1)
        if not found.kvs:
            raise NotFound(
                f"metadata store {self.access.place} is empty: no torus cluster is there",
                hint="check the members and the prefix of --meta; a first 'torus node' makes a "
                "cluster, 'torus meta migrate' moves one there",
            )

    def _key(self, key: str) -> bytes:
        return self._prefix + key.encode()

    def _range(self, **fields: Any) -> Any:
        request = self._messages.RangeRequest(**fields)
        return self.link.ask(lambda member: member.kv.Range, request, repeat=True)

    def _everything(self, prefix: bytes) -> tuple[int, Sequence[Any]]:
        """Return all of etcd's entries under ``prefix``, and the revision that they had.

        Raises: Unavailable when etcd's history is cut faster than they can be read.
        """
        for _ in range(ETCD_LIST_ATTEMPTS_MAX):
            found: list[Any] = []
            revision = 0
            try:
                for page in self._pages(prefix):
                    revision = revision or int(page.header.revision)
                    found += page.kvs
            except self.link.package.grpc.RpcError as exc:
                if failure(exc) is not Failure.COMPACTED:
                    raise self._unexpected(exc) from exc
                continue
            return revision, found
        raise Unavailable(
            f"metadata store {self.access.place} was compacted {ETCD_LIST_ATTEMPTS_MAX} times "
            f"while {prefix.decode()!r} was listed",
            hint="keep more history: etcd's --auto-compaction-retention",
        )

    def _pages(self, prefix: bytes) -> Iterator[Any]:
        begin, revision = prefix, 0
        while True:
            page = self._range(
                key=begin, range_end=_end(prefix), limit=ETCD_PAGE_KEYS, revision=revision
            )
            yield page
            if not page.more:
                return
            revision = revision or page.header.revision
            begin = page.kvs[-1].key + b"\0"

    def _entry(self, found: Any) -> Entry:
        key = found.key[len(self._prefix) :].decode()
        return Entry(key, found.value, found.mod_revision)

    def _comparison(self, expectation: Expect) -> Any:
        compare = self._messages.Compare
        return compare(
            key=self._key(expectation.key),
            target=compare.MOD,
            result=compare.EQUAL,
            mod_revision=expectation.revision,  # an absent key has 0
        )

    def _operation(self, change: Put | Delete) -> Any:
        messages, key = self._messages, self._key(change.key)
        if isinstance(change, Delete):
            delete = messages.DeleteRangeRequest(key=key)
            return messages.RequestOp(request_delete_range=delete)
        put = messages.PutRequest(key=key, value=change.value, lease=change.lease or 0)
        return messages.RequestOp(request_put=put)

    def _compact(self, revision: int) -> None:
        """Let etcd forget old revisions now and then; nobody waits for it.

        An etcd whose history is never cut grows until it refuses writes.  Failures do not matter:
        another process, or this one, will ask again.
        """
        step = revision // ETCD_COMPACT_EVERY
        if self._compacted == 0:
            self._compacted = step
        if step == self._compacted or revision <= ETCD_HISTORY_REVISIONS:
            return
        self._compacted = step
        request = self._messages.CompactionRequest(revision=revision - ETCD_HISTORY_REVISIONS)
        try:
            member = self.link.member(self.link.deadline_ns(0))
            member.kv.Compact.future(request, timeout=ETCD_ATTEMPT_S, metadata=self.link.headers())
        except (TorusError, ValueError):
            self._compacted = step - 1

    def _unexpected(self, exc: Any) -> TorusError:
        return meaning(exc, self.access.place)


class _Single:
    """A stream of one question and one answer, called like a plain request."""

    def __init__(self, stream: Any, lease: int) -> None:
        self._stream = stream
        self._lease = lease

    def __call__(self, request: Any, *, timeout: float, metadata: Any) -> Any:
        answers = self._stream(iter([request]), timeout=timeout, metadata=metadata)
        try:
            for answer in answers:
                return answer
        finally:
            answers.cancel()
        raise ValueError(f"the stream for lease {self._lease} ended without an answer")


def _end(prefix: bytes) -> bytes:
    """Return the first key behind all that begin with ``prefix``, which ends in '/'."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
