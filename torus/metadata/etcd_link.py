"""The way from one process to the members of an etcd cluster.

Decides which member is asked, for how long, what is asked again and what is not, and when an
etcd is not the one that it was.  It does not know what the keys mean.

Each member has a channel of its own, made when it is first asked.  One is the present member;
before it is used, and after each failure, it must *prove* itself: answer a linearisable read,
which a member without a majority cannot.  That keeps requests with effects away from members
that hang or stand alone, so that few of them end with an unknown outcome.

Every answer names etcd's cluster and its revision.  An answer from another cluster, or a
linearisable one with a smaller revision than an earlier answer had, means that somebody put an
older copy in place of what this process has worked with; from then on everything is refused.

Implements docs/metadata.md, "etcd".
"""

import random
import threading
from collections.abc import Callable
from typing import Any

from torus.clock import Clock
from torus.errors import Corruption, ForeignData, TorusError, Unavailable
from torus.limits import ETCD_ATTEMPT_S, ETCD_BACKOFF_S_MAX, ETCD_OPERATION_S
from torus.log import get_logger
from torus.metadata import rules
from torus.metadata.etcd_errors import Failure, failure, meaning, status
from torus.metadata.etcd_package import Package, load
from torus.metadata.etcd_url import EtcdAccess, check_files, read_password

log = get_logger("torus.etcd")

_HAS_LEADER = ("hasleader", "true")  # a member without a leader refuses at once
_FIRST_BACKOFF_S = 0.05
_TOKEN_ATTEMPTS_MAX = 3
# A ping that is not answered in 3 s ends the connection; etcd forbids more than one in 5 s.
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel must not inherit a dead connection
)


class Member:
    """One member's channel and stubs."""

    def __init__(self, package: Package, access: EtcdAccess, number: int) -> None:
        host, port = access.members[number]
        self.number = number
        self.name = f"{host}:{port}"
        self._client = package.client(
            host=host,
            port=port,
            ca_cert=access.ca or None,
            cert_cert=access.cert or None,
            cert_key=access.key or None,
            timeout=ETCD_ATTEMPT_S,
            grpc_options=_CHANNEL_OPTIONS,
        )
        self.kv = self._client.kvstub
        self.lease = self._client.leasestub
        self.maintenance = self._client.maintenancestub
        self.cluster = self._client.clusterstub
        self.watch = package.messages.WatchStub(self._client.channel)
        self.auth = package.messages.AuthStub(self._client.channel)

    def close(self) -> None:
        """End the channel and every call on it."""
        self._client.close()


Method = Callable[[Member], Any]


class EtcdLink:
    """Asks the members of one etcd cluster; safe for many threads."""

    def __init__(self, access: EtcdAccess, clock: Clock, proof_key: bytes) -> None:
        """``proof_key`` is read to prove a member; ``on_proof`` sees its value and may refuse it.

        Raises: ConfigError, PermissionDenied for files that cannot be used.
        """
        check_files(access)
        self.access = access
        self.package = load()
        self.clock = clock
        self.on_present: Callable[[Member], None] = lambda _member: None  # it is the present one
        self.on_proof: Callable[[bytes | None], None] = lambda _value: None  # the proof key's
        self._proof_key = proof_key
        self._password = read_password(access) if access.user else ""
        self._token = ""
        self._members: list[Member | None] = [None] * len(access.members)
        self._present = random.randrange(len(access.members))  # spreads processes over members
        self._proved = False
        self._proving = threading.Lock()
        self._state = threading.Lock()
        self._closing = threading.Event()
        self._refused: TorusError | None = None
        self._cluster_id = 0
        self._newest = 0

    @property
    def cluster_id(self) -> int:
        """Return etcd's own id of its cluster; 0 while it was never reached."""
        return self._cluster_id

    def ask(self, method: Method, request: Any, *, repeat: bool, linear: bool = True) -> Any:
        """Send ``request`` to the present member and return its answer.

        With ``repeat`` other members may be asked after it; a request with effects is sent again
        only when the first one certainly had none.  ``linear``: the answer's revision is that of
        a linearisable read or a change.

        Raises: Unavailable, PermissionDenied, PoolFull, ConfigError, Corruption, ForeignData,
            ShuttingDown; `grpc.RpcError` for what etcd says about leases and compactions.
        """
        deadline_ns = self.deadline_ns(ETCD_OPERATION_S)
        tokens = 0
        while True:
            member = self.member(deadline_ns)
            floor = self._newest
            try:
                answer = method(member)(
                    request, timeout=self._attempt_s(deadline_ns), metadata=self.headers()
                )
            except self.package.grpc.RpcError as exc:
                self._check_usable()
                kind = failure(exc)
                if kind in (Failure.LEASE, Failure.COMPACTED):
                    raise
                if kind is Failure.TOKEN and self.access.user and tokens < _TOKEN_ATTEMPTS_MAX:
                    tokens += 1
                    self.forget_token()
                    continue
                if kind in (Failure.MEMBER, Failure.REFUSED_EARLY):
                    self.suspect(member)
                    if (repeat or kind is Failure.REFUSED_EARLY) and self._left_s(deadline_ns) > 0:
                        continue
                raise meaning(exc, self.access.place) from exc
            except ValueError as exc:  # gRPC's word for a channel that was closed meanwhile
                self._check_usable()
                raise Unavailable(f"metadata store {self.access.place}: {exc}") from exc
            self.check(answer.header, floor if linear else 0)
            return answer

    def member(self, deadline_ns: int) -> Member:
        """Return the present member, which has proved itself since it last failed.

        Raises: Unavailable when none has until the deadline, ShuttingDown, Corruption,
            ForeignData, PermissionDenied.
        """
        self._check_usable()
        member = self._members[self._present]
        if self._proved and member is not None:
            return member
        if not self._proving.acquire(timeout=max(0.0, self._left_s(deadline_ns))):
            self._check_usable()
            raise self._unavailable(["no member answered"])
        try:
            return self._find(deadline_ns)
        finally:
            self._proving.release()

    def suspect(self, member: Member) -> None:
        """Let ``member`` prove itself again, after the others."""
        with self._state:
            if self._present == member.number and self._proved:
                self._proved = False
                self._present = (member.number + 1) % len(self._members)

    def all_members(self) -> list[Member]:
        """Return every member, proved or not, for questions about each of them."""
        return [self._open(number) for number in range(len(self._members))]

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return what goes with each request."""
        return (_HAS_LEADER, *self.token_headers())

    def token_headers(self) -> tuple[tuple[str, str], ...]:
        """Return what goes with a question that a member without a leader can answer."""
        token = self._token
        return (("token", token),) if token else ()

    def forget_token(self) -> None:
        """Show the password again before the next request."""
        with self._state:
            self._token = ""
            self._proved = False

    def check(self, header: Any, floor: int = 0) -> None:
        """Take note of an answer's header; ``floor`` is the newest revision before the question.

        Raises: ForeignData, Corruption; everything is refused from then on.
        """
        with self._state:
            if self._cluster_id not in (0, header.cluster_id):
                self._refused = ForeignData(
                    f"metadata store {self.access.place} is another etcd cluster than before: "
                    f"{header.cluster_id:x}, not {self._cluster_id:x}",
                    hint="all members in --meta must be of one etcd cluster; if it was made anew "
                    "from a backup, stop every torus process first",
                )
            elif header.revision < floor:
                self._refused = Corruption(
                    f"metadata store {self.access.place} has gone back from revision {floor} to "
                    f"{header.revision}: an older copy was put in its place",
                    hint="stop every torus process; put the newer etcd back if it still exists, "
                    "else see docs/metadata.md, 'An older copy'",
                )
            else:
                self._cluster_id = header.cluster_id
        self._check_usable()
        self.note(header.revision if floor else 0)

    def note(self, revision: int) -> None:
        """Remember that etcd has had this revision."""
        with self._state:
            self._newest = max(self._newest, revision)

    def deadline_ns(self, seconds: float) -> int:
        """Return the monotonic time in ``seconds``."""
        return self.clock.monotonic_ns() + round(seconds * 1e9)

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond `close`."""
        self._closing.wait(seconds)

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closing.is_set()

    def close(self) -> None:
        """End every call, also those that wait for an answer; idempotent."""
        self._closing.set()
        for member in self._members:
            if member is not None:
                member.close()

    def _check_usable(self) -> None:
        if self._closing.is_set():
            raise rules.closed("the metadata store")
        refused = self._refused
        if refused is not None:
            raise type(refused)(refused.message, hint=refused.hint)

    def _find(self, deadline_ns: int) -> Member:
        """Let the members prove themselves in turn until one does."""
        member = self._members[self._present]
        if self._proved and member is not None:
            return member  # another thread has found one meanwhile
        backoff_s = _FIRST_BACKOFF_S
        reasons: dict[str, str] = {}
        while True:
            for _ in self._members:
                member = self._open(self._present)
                reason = self._prove(member, deadline_ns)
                self._check_usable()
                if not reason:
                    return member
                reasons[member.name] = reason
                self._present = (self._present + 1) % len(self._members)
                if self._left_s(deadline_ns) <= 0:
                    raise self._unavailable([f"{name} {why}" for name, why in reasons.items()])
            self.pause(min(backoff_s * random.uniform(0.5, 1), self._left_s(deadline_ns)))
            backoff_s = min(2 * backoff_s, ETCD_BACKOFF_S_MAX)

    def _prove(self, member: Member, deadline_ns: int) -> str:
        """Ask ``member`` what only a member of a majority can answer; why it could not, or ''.

        Raises: PermissionDenied, ForeignData, Corruption; what ``on_proof`` raises.
        """
        messages = self.package.messages
        floor = self._newest
        try:
            if self.access.user and not self._token:
                self._token = member.auth.Authenticate(
                    messages.AuthenticateRequest(name=self.access.user, password=self._password),
                    timeout=self._attempt_s(deadline_ns),
                ).token
            answer = member.kv.Range(
                messages.RangeRequest(key=self._proof_key, limit=1),
                timeout=self._attempt_s(deadline_ns),
                metadata=self.headers(),
            )
        except self.package.grpc.RpcError as exc:
            self._check_usable()
            kind = failure(exc)
            if kind is Failure.FINAL or (kind is Failure.TOKEN and not self.access.user):
                raise meaning(exc, self.access.place) from exc
            if kind is Failure.TOKEN:
                self._token = ""
            return ": ".join(reversed(status(exc)))
        except ValueError as exc:  # gRPC's word for a closed channel
            return str(exc)
        self.check(answer.header, max(floor, 1))
        self.on_proof(answer.kvs[0].value if answer.kvs else None)
        with self._state:
            self._proved = True
        self.on_present(member)
        return ""

    def _open(self, number: int) -> Member:
        with self._state:
            member = self._members[number]
            if member is None:
                if self._closing.is_set():
                    raise rules.closed("the metadata store")
                member = self._members[number] = Member(self.package, self.access, number)
            return member

    def _attempt_s(self, deadline_ns: int) -> float:
        return max(0.01, min(ETCD_ATTEMPT_S, self._left_s(deadline_ns)))

    def _left_s(self, deadline_ns: int) -> float:
        return (deadline_ns - self.clock.monotonic_ns()) / 1e9

    def _unavailable(self, reasons: list[str]) -> Unavailable:
        return Unavailable(
            f"metadata store {self.access.place} cannot be reached: {'; '.join(reasons)}",
            hint="look at etcd: torus meta status; a majority of its members must run",
        )
