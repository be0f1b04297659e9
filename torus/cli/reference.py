"""The command reference, made from the parser itself.

`python -m torus.cli.reference` prints the part of docs/cli.md between its two marks; a test
compares them.
"""

import argparse
import sys
from collections.abc import Iterator

from torus.cli.parser import Parser, build_parser

_COMMON = {
    "help", "output", "meta", "meta_ca", "meta_cert", "meta_key", "meta_user",
    "meta_password_file", "tls_cert", "tls_key", "tls_ca", "home", "config",
}  # fmt: skip


def reference() -> str:
    """Return every command with its arguments, options and examples, as Markdown."""
    return "\n".join(line for parser in _leaves(build_parser(None)) for line in _section(parser))


def _leaves(parser: Parser) -> Iterator[Parser]:
    if not parser.verbs or parser.get_default("run") is not None:
        yield parser
    for verb in parser.verbs.values():
        yield from _leaves(verb)


def _section(parser: Parser) -> Iterator[str]:
    actions = [
        action
        for action in parser._actions
        if action.dest not in _COMMON and not isinstance(action, argparse._SubParsersAction)
    ]
    words = [_shown(action) for action in actions if not action.option_strings]
    options = "[OPTION...]" if any(action.option_strings for action in actions) else ""
    yield f"### {parser.prog}"
    yield ""
    yield "    " + " ".join(filter(None, (parser.prog, *words, options)))
    yield ""
    yield from (parser.description or "").replace(".  ", ".\n").splitlines()
    yield ""
    told = [action for action in actions if action.help]
    if told:
        yield "| argument | meaning |"
        yield "|---|---|"
        for action in told:
            yield f"| `{_shown(action)}` | {action.help} |"
        yield ""
    for purpose, command in parser.examples:
        yield f"    {command:<60}  # {purpose}"
    yield ""


def _shown(action: argparse.Action) -> str:
    value = action.metavar or ""
    if not value and action.choices is not None:
        value = "|".join(map(str, action.choices))
    text = " ".join(filter(None, (", ".join(action.option_strings), str(value))))
    optional = not action.option_strings and action.nargs in ("?", "*")
    text = f"[{text}]" if optional else text
    return text + "..." if action.nargs in ("+", "*") else text


if __name__ == "__main__":
    sys.stdout.write(reference())
