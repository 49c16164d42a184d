"""Pickles from strangers, read as data: nothing in them is imported, called or changed.

A pickle is a program for a small stack machine. Python's own machine builds real objects; this one
has no way to. A name is a `Name` and never looked up, and whatever would be called with it becomes
a `Stub`. Keys of dicts are strings or stubs, since hashing a nested tuple may take forever. Memory
grows with the size of the pickle and with nothing else.

    table = read_inert(Path(".metadata").read_bytes(), allowed={"torch.Size"})
    entries = fields(fields(table)["state_dict_metadata"])
"""

from collections.abc import Container
from dataclasses import dataclass
from pickle import UnpicklingError
from pickletools import genops
from typing import TypeVar

REFUSED = "GLOBAL"
"""What messages call a name that a pickle may not use: torch's, and those from here."""

_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_VALUES |= {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Name:
    """A class or a function that a pickle names, as module.name."""

    name: str


@dataclass(eq=False, slots=True)
class Stub:
    """An object that a pickle would make: what would be called, what with, and its state."""

    name: str
    args: tuple[object, ...]
    state: object = None


def fields(value: object) -> dict[object, object]:
    """Return a dict, or the attributes of an object."""
    return only(dict, value.state if isinstance(value, Stub) else value)


def only(kind: type[_T], value: object) -> _T:
    """Return the value if it is of this kind; refuse it if not."""
    if not isinstance(value, kind):
        raise ValueError(f"{type(value).__name__} where {kind.__name__} belongs")
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
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case name if name in _VALUES:
                stack.append(value)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple(_pop(stack, -int(name[-1]))))
            case "TUPLE":
                stack.append(tuple(_pop(stack, marks.pop())))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND" | "APPENDS" as name:
                items = _pop(stack, -1 if name == "APPEND" else marks.pop())
                only(list, stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS" as name:
                items = _pop(stack, -2 if name == "SETITEM" else marks.pop())
                keys = [key if isinstance(key, Stub) else only(str, key) for key in items[::2]]
                only(dict, stack[-1]).update(zip(keys, items[1::2], strict=True))
            case "GLOBAL":
                module, _, name = str(value).partition(" ")
                stack.append(_name(module, name, allowed))
            case "STACK_GLOBAL":
                module, name = (only(str, part) for part in _pop(stack, -2))
                stack.append(_name(module, name, allowed))
            case "REDUCE" | "NEWOBJ":
                args = only(tuple, stack[-1])
                del stack[-1]
                stack[-1] = Stub(only(Name, stack[-1]).name, args)
            case "BUILD":
                state = stack.pop()
                only(Stub, stack[-1]).state = state
            case "PROTO" | "FRAME":
                pass
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


def _name(module: str, name: str, allowed: Container[str]) -> Name:
    if f"{module}.{name}" not in allowed:
        raise UnpicklingError(f"{REFUSED} {module!r}.{name!r}")
    return Name(f"{module}.{name}")
