"""History tokens on a store in memory that can be set back."""

import copy

import pytest

from torus.errors import Corruption, ForeignData, Unavailable
from torus.metadata import history
from torus.metadata.base import Delete, Put
from torus.metadata.history import Token, check_token, make_token
from torus.metadata.keys import ORIGINS, mark_key
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import Origin, Origins


class Etcd(MemoryMetadata):
    """A store that says which cluster keeps it, and can become an older copy of itself."""

    cluster = 0xA

    def position(self) -> tuple[int, int]:
        return self.cluster, self._revision

    def copy(self) -> tuple[dict[str, object], int]:
        return copy.copy(self._entries), self._revision  # type: ignore[return-value]

    def go_back(self, state: tuple[dict[str, object], int]) -> None:
        self._entries, self._revision = copy.copy(state[0]), state[1]  # type: ignore[assignment]


@pytest.fixture
def store() -> Etcd:
    return Etcd()


def test_a_store_that_goes_forward_is_accepted(store: Etcd) -> None:
    token = ""
    for _ in range(3):
        token = make_token(store, token)
        check_token(store, token)
        store.commit([], [Put("a", b"")])
        check_token(store, token)


def test_dying_before_the_token_is_kept_does_no_harm(store: Etcd) -> None:
    kept = make_token(store, "")
    make_token(store, kept)  # not kept
    check_token(store, kept)
    make_token(store, kept)  # not kept either
    check_token(store, kept)


def test_an_older_copy_is_told(store: Etcd) -> None:
    first = make_token(store, "")
    backup = store.copy()
    second = make_token(store, first)
    store.go_back(backup)

    with pytest.raises(Corruption, match="it is at revision"):
        check_token(store, second)
    for _ in range(5):
        store.commit([], [Put("a", b"")])
    with pytest.raises(Corruption, match="does not hold the mark"):
        check_token(store, second)
    check_token(store, first)
    store.commit([], [Delete(mark_key(Token.from_text(first).holder))])
    with pytest.raises(Corruption, match="does not hold the mark"):
        check_token(store, first)


@pytest.mark.parametrize("behind", [0, 1])
def test_another_cluster_needs_an_origin_behind_the_token(store: Etcd, behind: int) -> None:
    token = make_token(store, "")
    revision = Token.from_text(token).revision
    store.cluster = 0xB
    with pytest.raises(ForeignData, match=r"cluster is b, but .* last saw cluster a"):
        check_token(store, token)

    origins = Origins("uid", (Origin("a", revision - behind), Origin("c", 1)))
    store.commit([], [Put(ORIGINS, origins.to_bytes())])
    if behind:
        with pytest.raises(Corruption, match="a backup that ends at revision"):
            check_token(store, token)
    else:
        check_token(store, token)


def test_two_holders_of_one_token_are_told(store: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "commit", lambda expect, changes: None)

    with pytest.raises(Unavailable, match="two processes hold one history token"):
        make_token(store, "")


@pytest.mark.parametrize("text", ["garbage", "[]", "{}", '{"cluster":"a"}', "null"])
def test_what_is_no_token_is_refused(store: Etcd, text: str) -> None:
    with pytest.raises(Corruption, match="cannot be read"):
        check_token(store, text)
    assert history.Token.from_text(make_token(store, "")).cluster == "a"
