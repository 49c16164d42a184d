"""Pickles from strangers, read as data: nothing in them is imported, called or changed.

A pickle is a program for a small stack machine, and Python's own one builds real objects. This
one has no way to: a name is a `Name`, what it is called with makes a `Stub`, a dict is a `Stub`
too, as hashing its keys would already run something. Memory grows with the size of the pickle.

    table = read_inert(Path(".metadata").read_bytes(), {"torch.Size"})
    table.fields("torch.distributed.checkpoint.metadata.Metadata")["state_dict_metadata"]
"""

from collections.abc import Container
from dataclasses import dataclass, field
from pickle import UnpicklingError
from pickletools import genops

REFUSED = "GLOBAL"
"""The word for a name that a pickle may not use, in torch's messages and in those from here."""

_DICTS = ("dict", "collections.OrderedDict")
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_VALUES = _NUMBERS | {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


@dataclass(frozen=True, slots=True)
class Name:
    """Something that a pickle names, as module.name; it is never looked up."""

    name: str


@dataclass(eq=False, slots=True)
class Stub:
    """An object that a pickle would make."""

    name: str
    """Its class or function, as module.name; "dict" for a dict."""
    args: tuple[object, ...] = ()
    """What that would be called with."""
    state: object = None
    """What its `__setstate__` or `__dict__` would get."""
    items: list[tuple[object, object]] = field(default_factory=list)
    """Keys and values that would be set."""

    def fields(self, name: str) -> dict[str, object]:
        """Return the attributes of an object of exactly this class, or refuse another."""
        if self.name != name:
            raise ValueError(f"{self.name} where {name} belongs")
        return strings(self.state)


def pairs(value: object) -> list[tuple[object, object]]:
    """Return the keys and values of a dict, or refuse what is none."""
    if not isinstance(value, Stub) or value.name not in _DICTS:
        raise ValueError(f"{type(value).__name__} where a dict belongs")
    return value.items


def strings(value: object) -> dict[str, object]:
    """Return a dict whose keys are strings, or refuse what is none."""
    items = pairs(value)
    if not all(isinstance(key, str) for key, _ in items):
        raise ValueError("a dict with keys that are not names")
    return {str(key): value for key, value in items}


def stub(value: object) -> Stub:
    """Return the value if it is a stub, or refuse it."""
    if not isinstance(value, Stub):
        raise ValueError(f"{type(value).__name__} where an object belongs")
    return value


def read_inert(content: bytes, allowed: Container[str]) -> object:
    """Return what a pickle holds; refuse names that are not allowed, and unusual opcodes.

    A stack or a memo that lacks something raises an IndexError or a KeyError.
    """
    stack: list[object] = []
    marks: list[int] = []
    memo: dict[object, object] = {}
    for opcode, value, _ in genops(content):
        match opcode.name:
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case name if name in _VALUES:
                stack.append(value)
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MARK":
                marks.append(len(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                stack.append(tuple(_pop(stack, marks.pop())))
            case "REDUCE" | "NEWOBJ":
                args, called = stack.pop(), stack.pop()
                if not (isinstance(called, Name) and isinstance(args, tuple)):
                    raise UnpicklingError(f"a call of a {type(called).__name__}")
                stack.append(Stub(called.name, args))
            case "BUILD":
                state = stack.pop()
                stub(stack[-1]).state = state
            case "EMPTY_DICT":
                stack.append(Stub("dict"))
            case "SETITEM" | "SETITEMS" as name:
                items = _pop(stack, -2 if name == "SETITEM" else marks.pop())
                stub(stack[-1]).items.extend(zip(items[::2], items[1::2], strict=True))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND" | "APPENDS" as name:
                items = _pop(stack, -1 if name == "APPEND" else marks.pop())
                if not isinstance(stack[-1], list):
                    raise UnpicklingError(f"items for a {type(stack[-1]).__name__}")
                stack[-1].extend(items)
            case "STACK_GLOBAL":
                stack.append(_name(_pop(stack, -2), allowed))
            case "GLOBAL":
                stack.append(_name([*str(value).split(" ", 1)], allowed))
            case "PROTO" | "FRAME":
                pass
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "STOP":
                break
            case name:
                raise UnpicklingError(f"{REFUSED} opcode {name}")
    return stack.pop()


def _pop(stack: list[object], start: int) -> list[object]:
    """Take everything from a place on off the stack."""
    taken = stack[start:]
    del stack[start:]
    return taken


def _name(parts: list[object], allowed: Container[str]) -> Name:
    module, name = parts
    if f"{module!s}.{name!s}" not in allowed:
        raise UnpicklingError(f"{REFUSED} {module!r}.{name!r}")
    return Name(f"{module}.{name}")
