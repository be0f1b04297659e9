"""Who may say what when: the transition table of a connection.

Each side has a state of its own; both begin in NEW.  What is not in the table is forbidden: to
send it is a `LocalProtocolError`, to receive it a `RemoteProtocolError`.  Implements
docs/protocol.md, "States".
"""

from collections.abc import Mapping
from enum import Enum

from torus.wire.messages import ANSWER, MessageType


class Role(Enum):
    """The two ends of a connection."""

    CLIENT = "client"
    SERVER = "server"


class State(Enum):
    """What one side may say next."""

    NEW = "new"  # its hello is due
    GREETED = "greeted"  # its proof is due
    READY = "ready"
    CLOSED = "closed"  # nothing more


_REQUESTS = [kind for kind in MessageType if MessageType.PROOF < kind < ANSWER]
_ANSWERS = [kind for kind in MessageType if kind > ANSWER]

# A server refuses a client with an ERROR in place of its hello.
TRANSITIONS: Mapping[tuple[Role, State], Mapping[MessageType, State]] = {
    (Role.CLIENT, State.NEW): {MessageType.HELLO: State.GREETED},
    (Role.CLIENT, State.GREETED): {MessageType.PROOF: State.READY},
    (Role.CLIENT, State.READY): dict.fromkeys(_REQUESTS, State.READY),
    (Role.CLIENT, State.CLOSED): {},
    (Role.SERVER, State.NEW): {MessageType.HELLO: State.READY, MessageType.ERROR: State.CLOSED},
    (Role.SERVER, State.GREETED): {},
    (Role.SERVER, State.READY): dict.fromkeys([*_ANSWERS, MessageType.ERROR], State.READY),
    (Role.SERVER, State.CLOSED): {},
}


def next_state(role: Role, state: State, kind: MessageType) -> State | None:
    """Return the state of ``role`` after it said ``kind``; None when it may not say it."""
    return TRANSITIONS[role, state].get(kind)
