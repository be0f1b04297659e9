"""What a shelf in a segment file says of itself: a row for each cell.

Decides what is said of a damaged header, descriptor or payload; `torus.daemon.inspection` has
the rest of the file.  Pure.  Implements docs/format.md, "Shards".
"""

from typing import Any

from torus.errors import Corruption, TorusError
from torus.format.segment import SlotHeader
from torus.format.shard import (
    PAYLOAD_OFFSET,
    PLACE_BYTES,
    CellHeader,
    Descriptor,
    cell_bytes,
    cell_offset,
    open_shard,
    shelf_data,
)

Row = dict[str, Any]


def inspect_shelf(
    shelf: SlotHeader, slot: bytes, slot_bytes: int
) -> tuple[list[Row], list[tuple[str, str]]]:
    """Return a row for each cell, and what is wrong, as (where, message).

    ``shelf`` is the slot's header, ``slot`` its bytes, as far as they are there.
    """
    data = shelf_data(shelf.chunk) or 0
    room = cell_bytes(data, slot_bytes) if data else 0
    if room <= 0:
        return [], [(f"slot {shelf.slot}", f"it cannot be cut into {data} cells")]
    rows, findings = [], []
    for cell in range(data):
        at = cell_offset(data, cell, slot_bytes)
        where = f"slot {shelf.slot} cell {cell}"
        row: Row = {"slot": shelf.slot, "cell": cell, "state": "free", "shard": None, "copy": 0}
        row |= {"data": data, "parity": None, "content_end": None, "payload_bytes": None}
        rows.append(row)
        try:
            _cell(row, shelf, slot[at : at + room], slot_bytes, where)
        except TorusError as exc:
            row["state"] = "damaged"
            findings.append((where, exc.message))
    return rows, findings


def _cell(row: Row, shelf: SlotHeader, content: bytes, slot_bytes: int, where: str) -> None:
    """Fill in a row as far as it can be read; ``content`` is the cell.

    Raises: Corruption, UnknownVersion, LocalProtocolError: what is wrong there.
    """
    if len(content) < PAYLOAD_OFFSET:
        raise Corruption(f"{where}: only {len(content)} bytes of the cell are there")
    header = CellHeader.unpack(content[:PLACE_BYTES], where)
    if header is None:
        return
    header.check_place(shelf.disk_id, shelf.segment, shelf.slot, row["cell"], row["data"], where)
    row |= {"state": "used", "shard": str(header.shard), "copy": header.copy}
    described = Descriptor.unpack(content[PLACE_BYTES:], where)
    row |= {"parity": described.parity, "content_end": described.content_end}
    row["payload_bytes"] = described.payload_bytes
    whole = content[PLACE_BYTES : PAYLOAD_OFFSET + described.payload_bytes]
    open_shard(whole, header.shard, slot_bytes)
