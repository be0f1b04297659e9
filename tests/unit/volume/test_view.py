"""Where a view thinks that chunks lie."""

from types import SimpleNamespace
from typing import Any

from torus._fast.blockio import PythonIo
from torus._fast.blockmap import BlockMap
from torus.cluster.chunks import Place
from torus.ids import ChunkId
from torus.metadata.schema import Span
from torus.volume.family import Family
from torus.volume.spans import Spans
from torus.volume.view import View


class _Elsewhere:
    """Chunks whose places change."""

    def __init__(self) -> None:
        self.io = PythonIo(self)
        self.places: dict[int, Place] = {1: 4096, 2: 8192}
        self.asked: list[tuple[int, Place | None]] = []

    def place(self, chunk: ChunkId, known: Place | None = None) -> Place | None:
        self.asked.append((chunk.sequence, known))
        return self.places.get(chunk.sequence)

    def learn(self, volume: int, spans: object) -> None:
        return


def test_places_are_asked_for_again_after_a_wrong_checksum() -> None:
    """A chunk that moved is not looked for where it was for ever."""
    chunks: Any = _Elsewhere()
    family = Family(Spans(5, (Span(1, 0, 1),)))
    view = View("v", BlockMap(1024, 1 << 20), family, chunks, 1 << 20)
    view.note_place(1)
    view.note_place(2)
    assert view.places == {1: 4096, 2: 8192}
    chunks.places[1] = 12288
    view.note_place(1)
    assert view.places[1] == 4096  # nothing says that this is wrong
    path: Any = SimpleNamespace(mismatches=1)
    view.path = path
    view.note_place(1)
    assert view.places == {1: 12288}
    view.note_place(2)
    view.note_place(1)
    assert view.places == {1: 12288, 2: 8192}


def test_shards_are_asked_for_until_all_are_known() -> None:
    """What is known of a chunk is handed in; a chunk that is known whole is not asked for."""
    chunks: Any = _Elsewhere()
    view = View("v", BlockMap(1024, 1 << 20), Family(Spans(5, (Span(1, 0, 1),))), chunks, 1 << 20)
    for place in ((4096, None, 8192), (4096, 512, 8192), (4096, 512, 0)):
        chunks.places[1] = place
        view.note_place(1)
    assert view.places == {1: (4096, 512, 8192)}
    assert chunks.asked == [(1, None), (1, (4096, None, 8192))]
