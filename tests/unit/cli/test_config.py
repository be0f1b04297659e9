"""Settings come from flag, environment, file and default, in this order, and are documented."""

import os
import re
from pathlib import Path

import pytest

from torus.config import OPTIONS, default_home, load_settings
from torus.errors import ConfigError

DOCUMENT = Path(__file__).parents[3] / "docs" / "configuration.md"


def write(tmp_path: Path, text: str) -> str:
    """Write a configuration file and return its path."""
    path = tmp_path / "t.toml"
    path.write_text(text)
    return str(path)


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    """Each source is used when the ones before it say nothing."""
    file = write(tmp_path, '[node]\nsize = "3GiB"\n')
    environment = {"TORUS_NODE_SIZE": "2GiB"}

    assert load_settings(environment, file).get("node.size", ("1GiB",)).text == ("1GiB",)
    assert load_settings(environment, file).get("node.size").text == ("2GiB",)
    assert load_settings({"TORUS_NODE_SIZE": ""}, file).get("node.size").text == ("3GiB",)
    assert load_settings({}, write(tmp_path, "")).get("map-cache").text == ("256MiB",)


def test_origin_names_who_said_it(tmp_path: Path) -> None:
    """A message about a wrong value can say where it stands."""
    file = write(tmp_path, 'map_cache = "1G"\n')
    settings = load_settings({"TORUS_ON_FULL": "x"}, file)

    assert settings.get("data-dir", ("x",)).origin == "--data-dir"
    assert settings.get("on-full").origin == "TORUS_ON_FULL"
    assert settings.get("map-cache").origin == f"{file}: map-cache"
    assert settings.get("home").origin == "default"


def test_lists_come_as_list_or_with_commas(tmp_path: Path) -> None:
    """Addresses may be many."""
    file = write(tmp_path, '[node]\nnbd = ["a:1", "unix:/b"]\n')

    assert load_settings({}, file).get("node.nbd").text == ("a:1", "unix:/b")
    assert load_settings({"TORUS_NODE_NBD": "a:1, b:2"}, file).get("node.nbd").text == (
        "a:1",
        "b:2",
    )
    single = write(tmp_path, 'node.nbd = "none"\n')
    assert load_settings({}, single).get("node.nbd").text == ("none",)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("sise = 1\n", "unknown key 'sise'", "node.size"),
        ("[node]\nsiez = 1\n", "unknown key 'node.siez'", "did you mean 'node.size'"),
        ("[nodes]\nsize = 1\n", "unknown key 'nodes.size'", "did you mean 'node.size'"),
        ("size = 1\n", "unknown key 'size'", "did you mean 'node.size'"),
        ("node.punch = 1\n", "node.punch = 1 is not true or false", None),
        ("map-cache = [1]\n", "map-cache = [1] is not a text or a number", None),
        ("on-full = true\n", "on-full = True is not a text or a number", None),
        ("node = \n", "is not TOML", None),
        ("\0", "is not TOML", None),
    ],
)
def test_wrong_file_is_refused(tmp_path: Path, text: str, message: str, hint: str | None) -> None:
    """The message names the file and the key, the hint the nearest key."""
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings({}, file)

    assert message in caught.value.message
    assert file in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")


def test_named_file_that_is_missing_or_no_text_is_an_error(tmp_path: Path) -> None:
    """A missing file is passed over only where nobody named it."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for named in (str(tmp_path / "nope"), str(tmp_path), str(tmp_path / "bytes")):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_settings({}, named)
        with pytest.raises(ConfigError, match="cannot be read"):
            load_settings({"TORUS_CONFIG": named})


def test_users_file_is_found(tmp_path: Path) -> None:
    """XDG_CONFIG_HOME counts when it is absolute, else ~/.config."""
    for folder in (tmp_path / "xdg", tmp_path / "home" / ".config"):
        (folder / "torus").mkdir(parents=True)
        (folder / "torus" / "config.toml").write_text(f'meta = "sqlite:{folder}"')
    environment = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": "relative"}

    assert ".config" in load_settings(environment).get("meta").text[0]
    environment["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    assert "xdg" in load_settings(environment).get("meta").text[0]


def test_default_home_is_the_systems_for_root_and_xdg_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Commands find each other without options."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_home({}) == Path("/var/lib/torus")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_home({"HOME": "/h"}) == Path("/h/.local/state/torus")
    assert default_home({"HOME": "/h", "XDG_STATE_HOME": "/s"}) == Path("/s/torus")


def test_document_has_every_setting() -> None:
    """The table in docs/configuration.md is the table in the code."""
    rows = re.findall(r"^\| `([a-z.-]+)` \| `(TORUS_\w+)` \| (.*?) \| (.*) \|$",
                      DOCUMENT.read_text(), re.M)  # fmt: skip
    expected = [
        (option.key, option.variable, f"`{option.default}`" if option.default else "-",
         option.meaning)
        for option in OPTIONS
    ]  # fmt: skip

    assert expected == rows
