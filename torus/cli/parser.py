"""The shape of the command line: nouns, verbs, options, examples.

Decides how arguments are declared and refused.  Each noun's module declares its own; it is
imported only when its noun is on the command line, which keeps the start short.

Implements docs/cli.md, "Commands".
"""

import argparse
import importlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from torus.errors import UsageError

NOUNS: dict[str, tuple[str, str]] = {
    "node": ("torus.cli.node", "run a node: store data and serve all volumes over NBD"),
    "volume": ("torus.cli.volume", "create, list, resize, delete, import and export volumes"),
    "nbd": (
        "torus.cli.nbd",
        "serve volumes from a process of its own, move them; list what is served",
    ),
    "ring": ("torus.cli.ring", "show which disks own what, and what a change would move"),
    "gc": ("torus.cli.gc", "free what overwriting left behind in the logs"),
    "status": ("torus.cli.status", "show whether nodes, disk, metadata and volumes are well"),
    "check": ("torus.cli.check", "verify a stopped node's data directory"),
    "scrub": ("torus.cli.scrub", "read the data of running nodes again and repair what is damaged"),
    "segment": ("torus.cli.segment", "look into a segment file"),
    "meta": ("torus.cli.meta", "look at the metadata store, back it up, move it into etcd"),
    "recover": ("torus.cli.recover", "make lost metadata anew from the copies in the log"),
    "completion": ("torus.cli.completion", "print a completion script for a shell"),
}
_VERB = "COMMAND"
_BAD_VERB = re.compile(r"argument COMMAND: invalid choice: '(.*)' \(choose from .*", re.DOTALL)
_NEGATIVE = re.compile(r"-[0-9]")

Example = tuple[str, str]  # what it is for, the command

# the place that commands are added to; argparse has no public name for it
if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction["Parser"]
else:
    Verbs = argparse._SubParsersAction


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of ending the process, and shows examples."""

    def __init__(self, *, examples: Sequence[Example] = (), **options: Any) -> None:
        options.setdefault("allow_abbrev", False)  # or a later option would break scripts
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(epilog=_epilog(examples), **options)
        self.examples = tuple(examples)
        self.verbs: dict[str, Parser] = {}
        # "-5GiB" is a wrong size, not an unknown option: no option of torus begins so
        self._negative_number_matcher = _NEGATIVE

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found as UsageError."""
        hint = f"see '{self.prog} --help'"
        match = _BAD_VERB.fullmatch(message)
        if match:
            import difflib

            close = difflib.get_close_matches(match[1], self.verbs, n=1)
            message = f"'{self.prog} {match[1]}' is not a command"
            hint = f"did you mean '{self.prog} {close[0]}'?" if close else hint
        raise UsageError(message, hint=hint)

    def add_verbs(self, dest: str) -> Verbs:
        """Add the commands below this one; which was chosen is found under ``dest``."""
        verbs = self.add_subparsers(dest=dest, metavar=_VERB, title="commands")
        self.verbs = verbs.choices  # the very dictionary that add_parser fills
        return verbs


def build_parser(words: Sequence[str] | None) -> Parser:
    """Return the whole parser; only nouns that are among ``words`` (None: all) are filled."""
    parser = Parser(
        prog="torus",
        description="torus keeps block devices in a log and serves them over NBD.",
        examples=(
            ("start everything on this machine", "torus node --size 20GiB"),
            ("make a volume", "torus volume create disk 10GiB"),
            ("put a file system on it", "qemu-img convert -n -O raw a.qcow2 nbd://127.0.0.1/disk"),
        ),
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    add_common(parser)
    verbs = parser.add_verbs("noun")
    for noun, (module, summary) in NOUNS.items():
        # a noun that cannot be meant costs a line of help and no import
        if words is None or noun in words:
            importlib.import_module(module).declare(verbs, noun, summary)
        else:
            verbs.add_parser(noun, help=summary)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command takes, before or behind its words."""
    group = parser.add_argument_group("common options")
    add = group.add_argument
    add("-o", "--output", choices=("table", "json"), default=argparse.SUPPRESS,
        help="form of the result (default table)")  # fmt: skip
    add("--meta", metavar="URL", default=argparse.SUPPRESS,
        help="metadata store, sqlite:PATH or etcd://HOST:PORT,.../PREFIX "
        "(default sqlite:TORUS_HOME/meta.sqlite)")  # fmt: skip
    add("--meta-ca", metavar="FILE", default=argparse.SUPPRESS,
        help="CA of etcd's certificates; --meta-cert and --meta-key are your own")  # fmt: skip
    for name in ("--meta-cert", "--meta-key"):
        add(name, metavar="FILE", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("--meta-user", metavar="NAME", default=argparse.SUPPRESS,
        help="user of etcd, with --meta-password-file FILE")  # fmt: skip
    add("--meta-password-file", metavar="FILE", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("--tls-cert", metavar="FILE", default=argparse.SUPPRESS,
        help="certificate for nodes of other hosts, with --tls-key and --tls-ca")  # fmt: skip
    for name in ("--tls-key", "--tls-ca"):
        add(name, metavar="FILE", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("--home", metavar="DIR", default=argparse.SUPPRESS,
        help="this machine's state (default /var/lib/torus for root, "
        "else ~/.local/state/torus)")  # fmt: skip
    add("--config", metavar="FILE", default=argparse.SUPPRESS,
        help="configuration file (default ~/.config/torus/config.toml, "
        "else /etc/torus/torus.toml)")  # fmt: skip


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add --data-dir, for commands that look at segments."""
    parser.add_argument(
        "--data-dir", metavar="DIR", help="the node's segments (default TORUS_HOME/data)"
    )


def add_command(
    verbs: Verbs,
    name: str,
    summary: str,
    run: Callable[..., int],
    *,
    description: str = "",
    examples: Sequence[Example] = (),
) -> Parser:
    """Add one command that ``run(arguments, session) -> exit code`` carries out."""
    text = description or summary[:1].upper() + summary[1:] + "."
    parser = verbs.add_parser(name, help=summary, description=text, examples=examples)
    parser.set_defaults(run=run)
    add_common(parser)
    return parser


def add_noun(verbs: Verbs, noun: str, summary: str) -> tuple[Parser, Verbs]:
    """Add a noun that has verbs of its own; returns its parser and the place for the verbs."""
    parser = verbs.add_parser(noun, help=summary, description=summary[:1].upper() + summary[1:])
    parser.set_defaults(run=None, chosen=parser)
    add_common(parser)
    return parser, parser.add_verbs("verb")


def _epilog(examples: Sequence[Example]) -> str | None:
    if not examples:
        return None
    lines = ["examples:"]
    for purpose, command in examples:
        lines += [f"  # {purpose}", f"  {command}"]
    return "\n".join(lines)
