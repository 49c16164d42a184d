"""Names of sets: one thing goes without a name, several are given by name.

by_name(prompts)                      # {"": prompts}
by_name({"train": a, "code": b})      # the same
"""

from collections.abc import Mapping
from typing import Any

from sr_monitor.errors import InputError, check_folder_name, check_kind, refused


def by_name(given: Any) -> dict[str, Any]:
    """Return what is given, by name; "" is that of the only one."""
    return dict(given) if isinstance(given, Mapping) else {"": given}


def as_given(named: Mapping[str, Any]) -> Any:
    """Return the only one without its name, else the same: the reverse of `by_name`."""
    return named[""] if set(named) == {""} else dict(named)


def check_sets(sets: Any, kind: Any, fix: str) -> None:
    """Refuse what is neither one set of this kind nor several, or a name that is no folder's."""
    if isinstance(sets, Mapping):
        if not sets:
            raise refused("prompts", sets, fix)
        for name, each in sets.items():
            check_folder_name("prompts", name)
            if name.startswith(("superseded", ".")):
                raise InputError(f"prompts={{{name!r}: ...}}: this name is taken; pass another")
            check_kind(f"prompts[{name!r}]", each, kind, fix)
    else:
        check_kind("prompts", sets, kind, fix)
