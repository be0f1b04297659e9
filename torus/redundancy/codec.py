"""Makes parity shards of data shards, and lost shards of those that are left.  Pure.

Decides which implementation computes: the compiled kernel, or zfec, the library that defines
the bytes.  Both give the same bytes and refuse the same mistakes; zfec itself would compute
with shard numbers that do not exist, so that they are checked before it sees them.

Implements docs/erasure-code.md.  The choice of zfec: docs/decisions/0019-zfec.md.
"""

from collections.abc import Sequence
from functools import cache
from typing import Literal, Protocol

from torus.errors import ConfigError
from torus.redundancy.scheme import Scheme, erasure

Buffer = bytes | bytearray | memoryview
Engine = Literal["auto", "kernel", "zfec"]
ENGINES: tuple[Engine, ...] = ("auto", "kernel", "zfec")


class Codec(Protocol):
    """The code of one scheme.  Threads may share it; it keeps nothing of a call.

    Shards are buffers of equal size, borrowed for the call; data shards are numbered from 0,
    parity shards after them.  Outputs are overwritten, and overlap no input.

    Raises: ValueError when numbers or sizes do not fit; then nothing is written.
    """

    @property
    def kernel(self) -> str:
        """Return what computes: an instruction set, or zfec."""

    def encode(self, data: Sequence[Buffer], parity: Sequence[Buffer]) -> None:
        """Write all parity shards from all data shards."""

    def encode_whole(self, content: Buffer, parity: Buffer, shard_bytes: int) -> None:
        """Write all parity shards, one after the other, from content that is the data shards.

        What is missing of the content's ``K * shard_bytes`` counts as zeroes.
        """

    def add(self, index: int, piece: Buffer, parity: Sequence[Buffer], offset: int) -> None:
        """Add to the parity shards what ``piece``, at ``offset`` of a data shard, contributes.

        The parity begins as zeroes, and each byte of the data is added once.
        """

    def rebuild(
        self,
        numbers: Sequence[int],
        present: Sequence[Buffer],
        wanted: Sequence[int],
        outputs: Sequence[Buffer],
    ) -> None:
        """Write the wanted shards, data or parity, from exactly K present ones.

        It works on a column of the shards as on the whole: equal offsets, equal sizes.
        """


def codec(scheme: Scheme, engine: Engine | None = None) -> Codec:
    """Return the code of an erasure scheme; one object for each scheme and engine.

    ``engine``: None is the one that was chosen with `choose_engine`.

    Raises: ConfigError when the engine is not there.
    """
    return _made(scheme, engine or _chosen[0])


def choose_engine(engine: Engine) -> None:
    """Have this process compute with an engine from now on.

    It is the process's, as the instruction set is: whoever computes makes the same bytes, and
    nothing else may depend on it.

    Raises: ConfigError when it is not there.
    """
    _made(_ANY, engine)
    _chosen[0] = engine


def engine_in_use() -> str:
    """Return what computes: the instruction set of the kernel, or zfec; empty: nothing can."""
    try:
        return codec(_ANY).kernel
    except ConfigError:
        return ""


_ANY = erasure(2, 1)
_chosen: list[Engine] = ["auto"]


@cache
def _made(scheme: Scheme, engine: Engine) -> Codec:
    assert scheme.erasure, scheme
    if engine in ("auto", "kernel"):
        try:
            from torus._fast.erasure import Code
        except ImportError as error:
            if engine == "kernel":
                raise ConfigError(
                    f"erasure coding by the compiled kernel is not possible: {error}",
                    hint="build the kernels, or ask for zfec",
                ) from error
        else:
            return Code(scheme.data, scheme.parity)
    try:
        from torus.redundancy.reference import ReferenceCode

        return ReferenceCode(scheme.data, scheme.parity)
    except ImportError as error:
        raise ConfigError(
            f"erasure coding by zfec is not possible: {error}", hint="pip install zfec"
        ) from error
