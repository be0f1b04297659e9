"""Taking one rule out of the real code, for as long as a stack is open."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

Patch = Callable[[ExitStack], None]


def replace(stack: ExitStack, owner: Any, name: str, made: Any) -> None:
    """Have another thing by that name."""
    stack.enter_context(mock.patch.object(owner, name, made))
