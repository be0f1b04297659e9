"""The front door: exit codes, output streams, interruption, start."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from torus import errors
from torus.cli import parser as parser_module
from torus.cli.parser import NOUNS, add_command, build_parser
from torus.cli.reference import reference

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run_failing(run, monkeypatch: pytest.MonkeyPatch):
    """Run a command `torus fail` that raises what it is given."""

    def run_it(error: BaseException, *words: str):
        def fail(arguments: object, session: object) -> int:
            raise error

        module = SimpleNamespace(
            declare=lambda verbs, noun, summary: add_command(verbs, noun, summary, fail)
        )
        monkeypatch.setitem(sys.modules, "failing_noun", module)
        monkeypatch.setattr(parser_module, "NOUNS", {"fail": ("failing_noun", "fail")})
        return run("fail", *words)

    return run_it


def every_error() -> list[type[errors.TorusError]]:
    """Return the whole exception tree."""
    found, todo = [], [errors.TorusError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    return found


@pytest.mark.parametrize("kind", every_error())
def test_every_error_has_its_exit_code_message_and_hint(run_failing, kind) -> None:
    """No traceback, one line each for message and hint."""
    ended = run_failing(kind("it broke", hint="mend it"))

    assert (ended.code, ended.out) == (kind.exit_code, "")
    assert ended.err == "torus: it broke\nhint: mend it\n"


def test_interruption_ends_with_130(run_failing) -> None:
    """Ctrl-C is no traceback."""
    ended = run_failing(KeyboardInterrupt())

    assert (ended.code, ended.err) == (130, "torus: interrupted\n")


def test_refusal_of_the_system_names_the_file(run_failing) -> None:
    """An OSError that nobody translated is still a message."""
    ended = run_failing(PermissionError(13, "Permission denied", "/x"))

    assert (ended.code, ended.err) == (77, "torus: /x: Permission denied\n")
    assert run_failing(OSError(5, "Input/output error")).err == "torus: Input/output error\n"


def test_unexpected_error_is_one_line_and_with_debug_a_traceback(run_process, tmp_path) -> None:
    """A bug asks to be reported."""
    words = ("segment", "inspect", str(tmp_path / "x"))
    (tmp_path / "x").write_text("")
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import torus.cli.segment as s\n"
        "def fail(arguments, session): raise RuntimeError('odd\\nthing')\n"
        "s.run_inspect = fail\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    ended = run_process(*words, env=env)
    debugged = run_process(*words, env={**env, "TORUS_DEBUG": "1"})

    assert ended.code == 1
    assert ended.err.startswith("torus: unexpected RuntimeError at sitecustomize.py:2: odd thing\n")
    assert "hint: this is a bug" in ended.err
    assert "Traceback" not in ended.err
    assert "Traceback" in debugged.err


def test_reader_that_goes_away_is_no_error_message(environment) -> None:
    """`torus completion bash | head -0` says nothing on standard error."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "torus.cli.main", "completion", "bash"],
        env=environment,
        stdout=write_end,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(write_end)

    assert (ended.returncode, ended.stderr) == (141, b"")


def test_output_that_cannot_be_written_is_an_error(environment) -> None:
    """A full disk under `torus ... > file` is noticed."""
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "torus.cli.main", "--version"],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )

    assert (ended.returncode, ended.stderr) == (1, b"torus: No space left on device\n")


def test_closed_standard_streams_are_survived(environment) -> None:
    """`torus --version >&- 2>&-` ends, without a traceback."""
    command = f"{sys.executable} -P -m torus.cli.main --version"
    for closing in (">&-", "2>&-", ">&- 2>&-"):
        ended = subprocess.run(
            ["sh", "-c", f"{command} {closing}"], env=environment, capture_output=True, timeout=60
        )
        assert b"Traceback" not in ended.stderr
        assert ended.returncode in (0, 1)


@pytest.mark.parametrize(
    "words", ["--version", "--help", "volume --help", "volume create --help", "volume list",
              "volume info nope", "volume create disk 1GiB", "status", "completion bash"]
)  # fmt: skip
def test_start_loads_neither_asyncio_nor_rich(run_process, words: str) -> None:
    """What costs 100 ms is loaded when it is used."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: sys.stderr.write('LOADED ' + ' '.join(sorted(\n"
        "    {'asyncio', 'uvloop', 'rich', 'prometheus_client', 'tomllib'} & set(sys.modules)))))\n"
        "from torus.cli.main import main\n"
        f"main({words.split()!r})\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TORUS_HOME": "/nonexistent/torus"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.stderr.rsplit("LOADED", 1)[1].strip() == "", ended.stderr


def in_terminal(environment: dict[str, str], *words: str) -> str:
    """Run `torus WORDS` with a terminal of 80 columns as output and return what it shows."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "torus.cli.main", *words],
        env={"TERM": "xterm-256color", "COLUMNS": "80", **environment},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:
        pass  # the terminal's other end was closed: all is read
    finally:
        os.close(ours)
    assert process.wait(timeout=60) == 0
    return shown.decode()


def test_terminal_gets_a_table_and_no_color_is_obeyed(run_process, environment) -> None:
    """Bold on a terminal; with NO_COLOR or TERM=dumb no escape at all."""
    run_process("volume", "create", "disk", "1GiB")

    assert "\x1b[1m" in in_terminal(environment, "volume", "list")
    assert "\x1b[1m" in in_terminal(environment, "volume", "info", "disk")
    for quiet in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        for words in (("volume", "list"), ("volume", "info", "disk")):
            shown = in_terminal({**environment, **quiet}, *words)
            assert "\x1b" not in shown
            assert "disk" in shown


def test_interrupt_from_a_keyboard_ends_a_process_with_130(environment, tmp_path: Path) -> None:
    """A real SIGINT while the command waits for its input."""
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, sys, torus.cli.segment as s\n"
        # a shell's background job ignores the signal, and so would its children
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait(arguments, session):\n"
        "    print('waiting', flush=True)\n"
        "    sys.stdin.read()\n"
        "s.run_inspect = wait\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "torus.cli.main", "segment", "inspect", "x"],
        env={**environment, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (130, "torus: interrupted\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(run, shell: str) -> None:
    """Nouns, verbs and options are in the script."""
    script = run("completion", shell).out

    for word in (*NOUNS, "create", "import", "inspect", "shrink", "data-dir"):
        assert word in script


def test_completion_for_bash_is_valid_shell(run) -> None:
    """bash -n accepts it."""
    script = run("completion", "bash").out
    checked = subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True, timeout=60)

    assert (checked.returncode, checked.stderr) == (0, b"")


def test_every_command_has_help_with_an_example(run) -> None:
    """--help works everywhere, and shows how the command is used."""

    def check(parser: parser_module.Parser) -> None:
        ended = run(*parser.prog.split()[1:], "--help")
        assert ended.code == 0
        assert ended.out.startswith(f"usage: {parser.prog}")
        if not parser.verbs:
            assert "examples:" in ended.out, parser.prog
        for below in parser.verbs.values():
            check(below)

    check(build_parser(None))


def test_examples_can_be_parsed() -> None:
    """No example shows an option that does not exist."""

    def check(parser: parser_module.Parser) -> None:
        for _, command in parser.examples:
            for piece in command.split("|"):
                words = piece.split(">")[0].split()
                if words[0] == "torus":
                    build_parser(None).parse_args(words[1:])
        for below in parser.verbs.values():
            check(below)

    check(build_parser(None))


def test_document_is_what_the_parser_says() -> None:
    """docs/cli.md ends with what `python -m torus.cli.reference` prints."""
    text = (ROOT / "docs" / "cli.md").read_text()

    assert reference() == text.split("torus.cli.reference -->\n\n")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("frobnicate",), "'torus frobnicate' is not a command"),
        (("statu",), "did you mean 'torus status'?"),
        (("-o", "xml", "status"), "invalid choice: 'xml'"),
        (("--nope",), "unrecognized arguments: --nope"),
        (("status", "--met", "x"), "unrecognized arguments: --met"),
        (("node", "--size", "-1"), "--size '-1' is negative"),
        (("node", "--size", "1M"), "--size 1 MiB is too small"),
        (("node", "--size", "1G", "--nbd", "x"), "--nbd: address 'x' cannot be used"),
        (("node", "--size", "1G", "--nbd", "none", "--nbd", "a:1"), "beside 'none'"),
        (("node", "--size", "1G", "--http", "x:http"), "--http: address 'x:http' cannot be used"),
        (("node", "--size", "1G", "--on-full", "explode"), "is not one of: pause, error"),
        (("node", "--size", "1G", "--checkpoint-interval", "0"), "is zero"),
        (("nbd", "serve", "a"), "there is no address to serve on"),
        (("nbd", "serve", "a", "a", "--socket", "x"), "volume 'a' is named twice"),
        (("nbd", "serve", "a", "--socket", "/" + "x" * 200), "the path has 201 bytes"),
    ],
)
def test_wrong_command_line_is_a_usage_error(run, words, message: str) -> None:
    """Exit code 64, and words that say what is wrong with which argument."""
    ended = run(*words)

    assert (ended.code, ended.out) == (64, "")
    assert message in ended.err


def test_wrong_value_in_environment_or_file_is_a_configuration_error(run, tmp_path) -> None:
    """Exit code 78, and the message names the variable or the file."""
    file = tmp_path / "c.toml"
    file.write_text("[node]\nsize = '1M'\n")
    by_file = run("node", "--config", str(file))
    by_environment = run("node", env={"TORUS_NODE_SIZE": "lots"})

    assert by_environment.code == by_file.code == 78
    assert "TORUS_NODE_SIZE 'lots' is not a size" in by_environment.err
    assert f"{file}: node.size 1 MiB is too small" in by_file.err


def test_node_gets_what_was_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Flags, environment and file end in one NodeConfig."""
    from torus.cli.node import node_config
    from torus.cli.output import Output
    from torus.cli.session import Session

    file = tmp_path / "c.toml"
    file.write_text("on-full = 'error'\n[node]\npunch = false\nhttp = 'none'\n")
    monkeypatch.chdir(tmp_path)
    arguments = build_parser(None).parse_args(
        ["node", "--size", "2G", "--nbd", "unix:n.sock", "--nbd", "[::1]:1", "--data-dir", "d"]
    )
    environment = {"TORUS_MAP_CACHE": "1M", "TORUS_CONFIG": str(file), "TORUS_HOME": "/h",
                   "TORUS_ERASURE": "zfec"}  # fmt: skip
    config = node_config(Session(arguments, environment, Output(environment)))

    assert config.size_bytes == 2 << 30
    assert config.nbd_addresses == (f"unix:{tmp_path}/n.sock", "[::1]:1")
    assert config.http_address is None
    assert config.punch is False
    assert config.common.meta_url == "sqlite:/h/meta.sqlite"
    assert config.common.data_dir == tmp_path / "d"
    assert config.common.map_cache_bytes == 1 << 20
    assert config.common.on_full == "error"
    assert config.common.erasure == "zfec"
    assert config.common.checkpoint_interval_s == 60
