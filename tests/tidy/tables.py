"""Tables in docs that are made from the code: `tables.py` rewrites them in place.

A page holds `<!-- table: NAME -->` and `<!-- end of table -->`; what stands between is
rendered from the code.  tests/tidy/test_docs.py fails when a page and the code differ.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


def _rows(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def error_classes() -> list[type]:
    """Return every class of torus.errors in the order of the file."""
    module = importlib.import_module("torus.errors")
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, module.TorusError)
    ]


def errors() -> str:
    """Render the exception tree: what each error means outside Python."""
    import errno

    rows = [
        [
            f"`{kind.__name__}`",
            f"`{kind.code}`",
            str(kind.exit_code),
            errno.errorcode[kind.nbd_errno],
            str(kind.wire_code),
            "yes" if kind.retryable else "no",
            (kind.__doc__ or "").splitlines()[0],
        ]
        for kind in error_classes()
    ]
    return _rows(["class", "code", "exit", "NBD", "wire", "try again", "meaning"], rows)


def _spoken(name: str, value: float) -> str:
    """Return a value with the unit that its name promises, in the largest whole unit."""
    if "BYTES" not in name or isinstance(value, float):
        return str(value)
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size and value % size == 0:
            return f"{int(value) // size} {unit}"
    return f"{value} B"


def limits() -> str:
    """Render every bound with its value and the comment that stands beside it."""
    module = importlib.import_module("torus.limits")
    source = Path(inspect.getfile(module)).read_text()
    rows = []
    for name, value in vars(module).items():
        if not name.isupper() or name.startswith("_") or name in ("KIB", "MIB", "GIB", "TIB"):
            continue
        comment = re.search(rf"^{name} = [^#\n]*#\s*(.*)$", source, re.MULTILINE)
        rows.append([f"`{name}`", _spoken(name, value), comment.group(1) if comment else ""])
    return _rows(["limit", "value", "meaning"], rows)


TABLES: dict[str, Callable[[], str]] = {"errors": errors, "limits": limits}


def rendered(text: str) -> str:
    """Return a page's text with every table made anew."""
    return MARK.sub(lambda found: found[1] + TABLES[found[2]]() + found[4], text)


def main() -> None:
    """Rewrite the tables of every page that has one."""
    sys.path.insert(0, str(ROOT))
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text()
        if (new := rendered(text)) != text:
            page.write_text(new)
            print(f"{page.relative_to(ROOT)}: tables rewritten")


if __name__ == "__main__":
    main()
