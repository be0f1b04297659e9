"""What the gateway counts.  Plain objects; rendering them is the observer's business."""

from torus._fast.stats import CommandCounter
from torus.nbd.constants import COMMAND_NAMES


class GatewayStats:
    """Counters of one server, over all its connections, since it started."""

    __slots__ = (
        "commands",
        "connections",
        "connections_open",
        "connections_refused",
        "handshakes_failed",
        "protocol_errors",
        "unknown",
    )

    def __init__(self) -> None:
        self.commands = tuple(CommandCounter() for _ in COMMAND_NAMES)
        self.unknown = CommandCounter()
        self.connections = 0
        self.connections_open = 0
        self.connections_refused = 0
        self.handshakes_failed = 0
        self.protocol_errors = 0

    def command(self, number: int) -> CommandCounter:
        """Return the counter of one NBD command; unknown ones share a counter."""
        return self.commands[number] if number < len(self.commands) else self.unknown

    def by_name(self) -> dict[str, CommandCounter]:
        """Return every counter by its command's name."""
        return {**dict(zip(COMMAND_NAMES, self.commands, strict=True)), "unknown": self.unknown}
