"""The etcd3 package, made usable with a present protobuf runtime.

Decides how its message classes come into being.  The package ships code that protobuf's compiler
made in 2019, and a runtime since 4.21 refuses to run that; but the file descriptors in it are
data like any other.  They are read from the installed package and given to a descriptor pool of
our own, so that no other package's ``kv.proto`` or ``rpc.proto`` gets in the way, and the classes
that the runtime makes of them take the place of the package's modules.

Nothing here is imported before an etcd URL is opened: gRPC alone takes 100 ms to load.

Implements docs/decisions/0016-etcd-through-etcd3.md.
"""

import ast
import importlib.util
import os
import sys
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torus.errors import ConfigError

_FILES = ("kv", "auth", "rpc")  # each imports only those before it
_MESSAGES = "etcd3.etcdrpc"
_BEGIN = "serialized_pb=_b("
_lock = threading.Lock()
_loaded: "Package | None" = None


@dataclass(frozen=True, slots=True)
class Package:
    """What torus uses of etcd3 and gRPC; they have no types."""

    client: Any  # etcd3.client: owner of a channel, its TLS and its stubs
    messages: Any  # etcd3.etcdrpc: requests, and the stubs that etcd3 has no object for
    grpc: Any


def load() -> Package:
    """Import etcd3 and gRPC, once for the process.

    Raises: ConfigError when they are not installed or are not of a version that works.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            # a node starts other programs; gRPC's fork handlers would only warn about that
            os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails is raised, not printed
            try:
                _make_messages()
                import etcd3  # type: ignore[import-untyped]
                import grpc  # type: ignore[import-untyped]
                from etcd3 import etcdrpc
            except (ImportError, OSError, ValueError, SyntaxError, TypeError) as exc:
                raise ConfigError(
                    f"metadata on etcd needs etcd3, grpcio and protobuf: {exc}",
                    hint="install them as torus asks: pip install 'etcd3==0.12.0' "
                    "'protobuf>=4.25,<8' 'grpcio>=1.66,<2'",
                ) from exc
            _loaded = Package(etcd3.client, etcdrpc, grpc)
        return _loaded


def _make_messages() -> None:
    """Put modules with present message classes where etcd3 looks for its own."""
    names = [f"{_MESSAGES}.{name}_pb2" for name in _FILES]
    if all(name in sys.modules for name in names):
        return
    found = importlib.util.find_spec("etcd3")
    if found is None or found.origin is None:
        raise ImportError("no package named etcd3")
    folder = os.path.join(os.path.dirname(found.origin), "etcdrpc")
    from google.protobuf import descriptor_pool  # type: ignore[import-untyped]

    pool = descriptor_pool.DescriptorPool()
    for name, module in zip(_FILES, names, strict=True):
        pool.AddSerializedFile(_descriptor(os.path.join(folder, f"{name}_pb2.py")))
        sys.modules[module] = _module(module, pool.FindFileByName(f"{name}.proto"))


def _descriptor(path: str) -> bytes:
    """Return the serialised descriptor that stands as a literal in generated code."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    begin = text.index(_BEGIN) + len(_BEGIN)
    line = text[begin : text.index("\n", begin)]
    literal = line[: line.rindex("'") + 1]
    value = ast.literal_eval(literal)
    if not isinstance(value, str):
        raise ValueError(f"{path} holds no descriptor")
    return value.encode("latin-1")


def _module(name: str, file: Any) -> ModuleType:
    """Return a module with the classes of all messages and enumerations of one file."""
    from google.protobuf import message_factory
    from google.protobuf.internal import enum_type_wrapper  # type: ignore[import-untyped]

    module = ModuleType(name, f"Messages of {file.name}, made by torus.")
    for message, descriptor in file.message_types_by_name.items():
        setattr(module, message, message_factory.GetMessageClass(descriptor))
    for enumeration, descriptor in file.enum_types_by_name.items():
        setattr(module, enumeration, enum_type_wrapper.EnumTypeWrapper(descriptor))
        for value in descriptor.values:
            setattr(module, value.name, value.number)
    return module
