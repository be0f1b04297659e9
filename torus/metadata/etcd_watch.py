"""Watches of etcd that survive members, elections and restarts.

Decides where a watch goes on after its stream broke: behind the last revision that it has seen
whole, so that no change is lost or given twice.  When etcd no longer keeps that revision, the
watch ends with `Unavailable`, and its holder lists anew.

All watches of a process share one stream and one thread, which reopens the stream on the link's
present member.  What a watch's holder has not taken yet is bounded.

Source: etcd's Documentation/learning/api.md, "Watch API": a response holds whole revisions unless
fragments are asked for, and a response without events tells that all before its revision was sent.
"""

import random
import threading
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

from torus.errors import TorusError, Unavailable
from torus.limits import (
    ETCD_BACKOFF_S_MAX,
    ETCD_OPERATION_S,
    METADATA_HISTORY_BYTES_MAX,
    METADATA_HISTORY_CHANGES_MAX,
)
from torus.log import get_logger
from torus.metadata import rules
from torus.metadata.base import Event
from torus.metadata.etcd_errors import Failure, failure, meaning
from torus.metadata.etcd_link import EtcdLink, Member

log = get_logger("torus.etcd")

_FIRST_BACKOFF_S = 0.05


class EtcdWatch:
    """A `Watch` of one prefix."""

    def __init__(self, streams: "EtcdStreams", prefix: str, after_revision: int) -> None:
        self._streams = streams
        self.prefix = prefix
        self.position = after_revision  # all changes up to here were put in or need not be
        self._changed = threading.Condition()
        self._waiting: deque[Event] = deque()
        self._waiting_bytes = 0
        self._ended: TorusError | None = None

    def next(self, timeout_s: float) -> Sequence[Event]:
        """Wait for changes and return them; an empty sequence when none came in time."""
        clock = self._streams.link.clock
        deadline_ns = clock.monotonic_ns() + round(max(0.0, timeout_s) * 1e9)
        with self._changed:
            while not self._waiting:
                if self._ended is not None:
                    raise type(self._ended)(self._ended.message, hint=self._ended.hint)
                left_s = (deadline_ns - clock.monotonic_ns()) / 1e9
                if left_s <= 0:
                    return ()
                self._changed.wait(left_s)
            events = list(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0
            return events

    def close(self) -> None:
        """Stop watching; idempotent."""
        self._streams.remove(self)
        self.end(rules.closed(f"the watch of {self.prefix!r}"), at_once=True)

    def put(self, events: Sequence[Event]) -> bool:
        """Take what the stream brought; False when the holder lags too far behind."""
        with self._changed:
            if self._ended is not None:
                return False
            # a stream that was opened anew may bring the last revision a second time
            events = [event for event in events if event.revision > self.position]
            if not events:
                return True
            self._waiting.extend(events)
            self._waiting_bytes += sum(len(one.key) + len(one.value or b"") for one in events)
            self.position = events[-1].revision
            if (
                len(self._waiting) <= METADATA_HISTORY_CHANGES_MAX
                and self._waiting_bytes <= METADATA_HISTORY_BYTES_MAX
            ):
                self._changed.notify_all()
                return True
        self.end(_lags(self.prefix), at_once=True)
        return False

    def advance(self, revision: int) -> None:
        """Note that there is no other change up to ``revision``."""
        self.position = max(self.position, revision)

    def end(self, error: TorusError, *, at_once: bool = False) -> None:
        """Let `next` raise ``error``, behind what waits unless ``at_once``."""
        with self._changed:
            if self._ended is None or at_once:
                self._ended = error
            if at_once:
                self._waiting.clear()
                self._waiting_bytes = 0
            self._changed.notify_all()


class EtcdStreams:
    """All watches of one store, on one stream at a time."""

    def __init__(self, link: EtcdLink, prefix: str) -> None:
        """``prefix`` stands before every key of the store and is not part of it."""
        self.link = link
        self._prefix = prefix
        self._lock = threading.Lock()
        self._watches: set[EtcdWatch] = set()
        self._by_id: dict[int, EtcdWatch] = {}
        self._asked: deque[EtcdWatch] = deque()  # etcd gives ids in the order of the requests
        self._requests: SimpleQueue[Any] | None = None
        self._call: Any = None
        self._member: Member | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        link.on_present = self._follow

    def add(self, prefix: str, after_revision: int) -> EtcdWatch:
        """Watch one prefix.  Raises: ShuttingDown."""
        watch = EtcdWatch(self, prefix, after_revision)
        with self._lock:
            if self._closed:
                raise rules.closed("the metadata store")
            self._watches.add(watch)
            if self._requests is not None:
                self._ask(watch)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="metadata-etcd", daemon=True)
                self._thread.start()
        return watch

    def remove(self, watch: EtcdWatch) -> None:
        """Let go of a watch; idempotent."""
        messages = self.link.package.messages
        with self._lock:
            self._watches.discard(watch)
            for number in [one for one, held in self._by_id.items() if held is watch]:
                del self._by_id[number]
                if self._requests is not None:
                    cancel = messages.WatchCancelRequest(watch_id=number)
                    self._requests.put(messages.WatchRequest(cancel_request=cancel))

    def close(self) -> None:
        """End every watch and the thread; the link is closed before."""
        with self._lock:
            self._closed = True
            watches, thread = tuple(self._watches), self._thread
            self._cancel()
        for watch in watches:
            watch.close()
        if thread is not None:
            thread.join()

    def _ask(self, watch: EtcdWatch) -> None:
        """Ask the open stream for a watch; the lock is held."""
        messages = self.link.package.messages
        key = (self._prefix + watch.prefix).encode()
        create = messages.WatchCreateRequest(
            key=key,
            range_end=key[:-1] + bytes([key[-1] + 1]),  # it ends in '/'
            start_revision=watch.position + 1,
            progress_notify=True,
        )
        self._asked.append(watch)
        assert self._requests is not None
        self._requests.put(messages.WatchRequest(create_request=create))

    def _follow(self, member: Member) -> None:
        """Leave a stream whose member is no longer the present one."""
        with self._lock:
            if self._member is not None and self._member is not member:
                self._cancel()

    def _cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()

    def _run(self) -> None:
        """Keep a stream open until the store is closed."""
        backoff_s = _FIRST_BACKOFF_S
        while not self._closed:
            try:
                member = self.link.member(self.link.deadline_ns(ETCD_OPERATION_S))
                if self._read(member):
                    backoff_s = _FIRST_BACKOFF_S
            except Unavailable:
                pass  # the link has waited already, and goes on looking
            except TorusError as exc:  # closed, foreign, gone back, or not permitted
                self._end_all(exc)
                return
            self.link.pause(backoff_s * random.uniform(0.5, 1))
            backoff_s = min(2 * backoff_s, ETCD_BACKOFF_S_MAX)

    def _read(self, member: Member) -> bool:
        """Read one stream to its end; True when it brought anything."""
        grpc = self.link.package.grpc
        requests: SimpleQueue[Any] = SimpleQueue()
        useful = False
        call = None
        try:
            call = member.watch.Watch(iter(requests.get, None), metadata=self.link.headers())
            with self._lock:
                self._requests, self._call, self._member = requests, call, member
                if self._closed:
                    call.cancel()
                for watch in self._watches:
                    self._ask(watch)
            for response in call:
                useful = True
                self.link.check(response.header)
                self._take(response)
        except grpc.RpcError as exc:
            kind = failure(exc)
            if kind is Failure.TOKEN and self.link.access.user:
                self.link.forget_token()
            elif kind in (Failure.TOKEN, Failure.FINAL):
                raise meaning(exc, self.link.access.place) from exc
            elif not self.link.closed and exc.code() is not grpc.StatusCode.CANCELLED:
                self.link.suspect(member)
        except ValueError:
            log.debug("etcd.watch.channel-closed", member=member.name)
        finally:
            with self._lock:
                self._requests = self._call = self._member = None
                self._by_id.clear()
                self._asked.clear()
            requests.put(None)  # lets gRPC's thread that reads the requests end
            if call is not None:
                call.cancel()  # no effect on one that has ended
        return useful

    def _take(self, response: Any) -> None:
        """Hand one response to its watch."""
        with self._lock:
            if response.created and self._asked:
                watch = self._asked.popleft()
                if watch in self._watches and not response.canceled:
                    self._by_id[response.watch_id] = watch
                elif not response.canceled:
                    messages = self.link.package.messages
                    cancel = messages.WatchCancelRequest(watch_id=response.watch_id)
                    assert self._requests is not None
                    self._requests.put(messages.WatchRequest(cancel_request=cancel))
            else:
                found = self._by_id.get(response.watch_id)
                if found is None:
                    return  # it was closed meanwhile
                watch = found
            if response.canceled:
                self._by_id.pop(response.watch_id, None)
        if response.canceled:
            self._refused(watch, response)
        elif response.events:
            events = [self._event(event) for event in response.events]
            self.link.note(events[-1].revision)
            if not watch.put(events):
                self.remove(watch)
        elif not response.created:
            watch.advance(response.header.revision)

    def _refused(self, watch: EtcdWatch, response: Any) -> None:
        """Deal with a watch that etcd ended on its own."""
        if response.compact_revision:
            self.remove(watch)
            watch.end(_compacted(watch, response.compact_revision))
            return
        reason = response.cancel_reason or "no reason given"
        log.warning("etcd.watch.refused", prefix=watch.prefix, reason=reason)
        if "auth token" in reason or "auth revision" in reason:
            self.link.forget_token()
            with self._lock:
                self._cancel()  # the stream carries the old token
            return
        self.remove(watch)
        watch.end(
            Unavailable(
                f"metadata store {self.link.access.place} ended the watch of "
                f"{watch.prefix!r}: {reason}",
                hint="check that the user may read the whole prefix",
            )
        )

    def _event(self, event: Any) -> Event:
        entry = event.kv
        key = entry.key.decode()[len(self._prefix) :]
        deleted = event.type == event.DELETE
        return Event(key, None if deleted else entry.value, entry.mod_revision)

    def _end_all(self, error: TorusError) -> None:
        with self._lock:
            watches = tuple(self._watches)
            self._watches.clear()
            self._thread = None  # this one ends
        for watch in watches:
            watch.end(error)


def _lags(prefix: str) -> Unavailable:
    return Unavailable(
        f"more changes under {prefix!r} wait than the {METADATA_HISTORY_CHANGES_MAX} or "
        f"{METADATA_HISTORY_BYTES_MAX} bytes that are kept for a watch",
        hint="list the prefix again and watch from the listing's revision",
    )


def _compacted(watch: EtcdWatch, revision: int) -> Unavailable:
    return Unavailable(
        f"changes under {watch.prefix!r} after revision {watch.position} are no longer kept: "
        f"etcd's history begins at revision {revision}",
        hint="list the prefix again and watch from the listing's revision",
    )
