"""`torus completion`: static completion scripts, so that TAB starts no Python.

Implements docs/cli.md, "torus completion".
"""

import argparse

from torus.cli.parser import Verbs, add_command, build_parser
from torus.cli.session import Session

SHELLS = ("bash", "zsh", "fish")


def declare(verbs: Verbs, noun: str, summary: str) -> None:
    """Add `torus completion`."""
    parser = add_command(
        verbs,
        noun,
        summary,
        run_completion,
        examples=(
            ("bash, now", 'eval "$(torus completion bash)"'),
            ("zsh", "torus completion zsh > ~/.zfunc/_torus"),
            ("fish", "torus completion fish > ~/.config/fish/completions/torus.fish"),
        ),
    )
    parser.add_argument("shell", choices=SHELLS)


def run_completion(arguments: argparse.Namespace, session: Session) -> int:
    """Print the script for one shell."""
    import shtab

    script = shtab.complete(build_parser(None), shell=arguments.shell)
    session.output.show(
        {"shell": arguments.shell, "script": script}, lambda: session.output.line(script)
    )
    return 0
