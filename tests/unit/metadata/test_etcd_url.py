"""URLs of etcd, and what is read from them."""

import os
from pathlib import Path

import pytest

from torus.errors import ConfigError, PermissionDenied
from torus.metadata.etcd_url import (
    EtcdAccess,
    check_files,
    parse_etcd,
    read_password,
    with_options,
)


def test_a_short_one() -> None:
    assert parse_etcd("etcd://host") == EtcdAccess((("host", 2379),), "torus/")


def test_a_long_one() -> None:
    access = parse_etcd(
        "etcd://me@h1:1,h2:2,[::1]:3/a/b-c/?password-file=~/p%20w&ca=/ca&cert=/c&key=/k"
    )

    assert access.members == (("h1", 1), ("h2", 2), ("[::1]", 3))
    assert access.prefix == "a/b-c/"
    assert (access.user, access.password_file) == ("me", os.path.expanduser("~/p w"))
    assert (access.ca, access.cert, access.key) == ("/ca", "/c", "/k")
    assert access.place == "etcd://h1:1,h2:2,[::1]:3/a/b-c"


def test_settings_join_a_url_that_has_them_not() -> None:
    url = with_options("etcd://h/t?ca=/mine", {"ca": "/other", "user": "m&e", "key": ""})

    assert url == "etcd://h/t?ca=/mine&user=m%26e"
    assert with_options("etcd://h/t", {"ca": "/a b"}) == "etcd://h/t?ca=/a%20b"
    assert with_options("etcd://h/t", {}) == "etcd://h/t"
    assert with_options("sqlite:/a", {"ca": "/other"}) == "sqlite:/a"


def test_a_password_is_never_in_a_message() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_etcd("etcd://me:secret@h/t")

    assert "secret" not in str(refused.value)


def test_a_password_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    access = parse_etcd(f"etcd://me@h/t?password-file={file}")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_password(access)
    file.write_text(" s3cret \nnot this\n")

    assert read_password(access) == " s3cret "


def test_files_are_looked_at_before_they_are_used(tmp_path: Path) -> None:
    file = tmp_path / "ca"
    access = parse_etcd(f"etcd://h/t?ca={file}")
    with pytest.raises(ConfigError, match=r"CA file .* cannot be read"):
        check_files(access)
    file.write_text("not that")
    with pytest.raises(ConfigError, match="is not PEM"):
        check_files(access)
    file.write_text("-----BEGIN CERTIFICATE-----\n")
    check_files(access)
    if os.geteuid() != 0:
        file.chmod(0)
        with pytest.raises(PermissionDenied):
            check_files(access)
