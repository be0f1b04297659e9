"""The front door: arguments in, exit code out, every failure one clear message.

Decides what becomes of an error that reaches the top.  What an error's exit code is stands
in `torus.errors`.

Implements docs/cli.md, "Exit codes".
"""

import os
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType

from torus import __version__
from torus.cli.output import Output
from torus.cli.parser import Parser, build_parser
from torus.errors import Interrupted, PermissionDenied, TorusError

EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it
REPORT_HINT = "this is a bug in torus: run it again with TORUS_DEBUG=1 and report the output"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command line and return the process's exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.excepthook = report_unexpected
    for stream in (sys.stdout, sys.stderr):
        # a path may hold bytes that are no text in this locale; showing them must not fail
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    output = Output(os.environ)
    output.as_json = _wants_json(words, os.environ)
    try:
        code = _run(words, output)
        output.flush()
    except TorusError as exc:
        code = _fail(output, exc)
    except KeyboardInterrupt:
        code = _fail(output, Interrupted("interrupted"))
    except BrokenPipeError:
        _silence_stdout()
        code = EXIT_BROKEN_PIPE
    except OSError as exc:
        code = _fail(output, _from_os(exc))
        _silence_stdout()
    return code


def torusd() -> int:
    """Be the daemon: `torusd` is `torus node`."""
    return main(["node", *sys.argv[1:]])


def report_unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Say in one line that torus has a bug; with TORUS_DEBUG=1 show all of it."""
    import traceback  # 9 ms that only a bug has to pay

    if os.environ.get("TORUS_DEBUG") == "1":
        traceback.print_exception(kind, error, trace)
        return
    where = ""
    for frame in traceback.extract_tb(trace)[-1:]:
        where = f" at {os.path.basename(frame.filename)}:{frame.lineno}"
    text = " ".join(str(error).split())
    sys.stderr.write(f"torus: unexpected {kind.__name__}{where}: {text}\nhint: {REPORT_HINT}\n")


def _run(words: Sequence[str], output: Output) -> int:
    parser = build_parser(words)
    try:
        found = parser.parse_args(words)
    except SystemExit as exc:  # --help has been printed
        return int(exc.code or 0)
    if found.version:
        output.show({"version": __version__}, lambda: output.line(f"torus {__version__}"))
        return 0
    run = getattr(found, "run", None)
    if run is None:
        chosen: Parser = getattr(found, "chosen", parser)
        chosen.error("a command is missing")
    from torus.cli.session import Session

    code: int = run(found, Session(found, os.environ, output))
    return code


def _wants_json(words: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Say whether errors are to be JSON: needed before the words are parsed."""
    for index, word in enumerate(words):
        if word in ("-o", "--output"):
            return words[index + 1 : index + 2] == ["json"]
        if word in ("-ojson", "--output=json"):
            return True
    return environment.get("TORUS_OUTPUT") == "json"


def _fail(output: Output, error: TorusError) -> int:
    try:
        output.error(error)
    except OSError:
        _silence_stdout()  # standard error is gone: the exit code alone has to say it
    return error.exit_code


def _from_os(error: OSError) -> TorusError:
    """Return the operating system's refusal as an error that names the thing."""
    reason = error.strerror or str(error) or type(error).__name__
    where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
    kind = PermissionDenied if isinstance(error, PermissionError) else TorusError
    return kind(f"{where}{reason}")


def _silence_stdout() -> None:
    """Let the interpreter's last flush go nowhere, or it would complain a second time."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
