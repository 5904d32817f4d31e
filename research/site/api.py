"""Pages of the API: one for every public name, and one for every module with others."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import griffe

import melbo
from research.site.comments import Comments

#: Rooms whose names are meant to be imported from the room itself, as their ``__all__`` says.
PUBLIC_ROOMS = ("methods", "bilinear", "dictionary")
#: Rooms that are used by commands and pages only.
_NOT_SHOWN = ("cli", "explorer")
_INDEX = """# API

Every public name of the package, each with a page. Names of the first table are imported as
`melbo.NAME`; those of the next three from `melbo.methods`, `melbo.bilinear` and `melbo.dictionary`.
What else a module offers is on the [page of the module](#modules). Modules may change with any
version; names of the tables change with a note in the changelog.
"""


@dataclass(frozen=True)
class Api:
    """Public names of the package, and what else its modules define.

    Attributes:
        rooms: Public names of each public room, as (path, first line of the docstring).
        modules: Other members of each module, by the module's path, with its first line.
    """

    rooms: Mapping[str, Sequence[tuple[str, str]]]
    modules: Mapping[str, tuple[str, Sequence[str]]]

    @classmethod
    def of(cls, root: Path) -> "Api":
        """Read the package below a folder, without importing it.

        Args:
            root: The folder.
        """
        comments = griffe.Extensions(Comments())
        package = griffe.load(
            "melbo", search_paths=[root], resolve_aliases=True, extensions=comments
        )
        rooms, own = {"melbo": list(melbo.__all__)}, set()
        for room in PUBLIC_ROOMS:
            rooms[f"melbo.{room}"] = [str(name) for name in package[room].exports or ()]
        public: dict[str, list[tuple[str, str]]] = {}
        for room, names in rooms.items():
            public[room] = []
            for name in names:
                path = f"{room}.{name}"
                member = package[path.removeprefix("melbo.")]
                if member.canonical_path not in own:
                    own.add(member.canonical_path)
                    public[room].append((path, _first_line(member)))
        modules = {
            module.path: (_first_line(module), members)
            for module in _modules(package)
            if (members := _members(module, own))
        }
        return cls(public, modules)

    def pages(self) -> dict[str, str]:
        """Markdown of every page by its path in the site."""
        pages = {"api/README.md": self._index()}
        for names in self.rooms.values():
            for path, _ in names:
                pages[f"api/{path}.md"] = f"::: {path}\n"
        for path, (_, members) in self.modules.items():
            listed = "".join(f"        - {name}\n" for name in members)
            pages[f"api/{path}.md"] = f"::: {path}\n    options:\n      members:\n{listed}"
        return pages

    def navigation(self) -> list[dict[str, Any]]:
        """Entries of the navigation: names room by room, then modules room by room."""
        entries: list[dict[str, Any]] = [
            {room: [{path.rpartition(".")[2]: f"api/{path}.md"} for path, _ in names]}
            for room, names in self.rooms.items()
        ]
        modules: list[Any] = []
        rooms: dict[str, list[dict[str, str]]] = {}
        for path in self.modules:
            _, room, *rest = path.split(".")
            entry = {".".join(rest) or room: f"api/{path}.md"}
            if not rest:
                modules.append(entry)
            elif room not in rooms:
                modules.append({room: rooms.setdefault(room, [entry])})
            else:
                rooms[room].append(entry)
        return [*entries, {"Modules": modules}]

    def identifier(self, name: str) -> str | None:
        """Path of the object that a name between backticks means; None if it means none.

        A name without a dot has to begin with a capital: others are words of many meanings.

        Args:
            name: A name, such as ``CausalMap``, ``Map.value`` or ``melbo.fit``.
        """
        first, dot, rest = name.partition(".")
        if first == "melbo" and dot:
            return name
        path = self._known.get(first)
        return None if path is None else path + dot + rest

    @cached_property
    def _known(self) -> dict[str, str]:
        """Path of each class or constant whose name no other has."""
        paths = [path for names in self.rooms.values() for path, _ in names]
        public = {path.rpartition(".")[2]: path for path in reversed(paths)}
        others = [(name, f"{path}.{name}") for path, (_, ms) in self.modules.items() for name in ms]
        counts = Counter(name for name, _ in others)
        known = {name: path for name, path in others if counts[name] == 1} | public
        return {name: path for name, path in known.items() if name[0].isupper()}

    def _index(self) -> str:
        """Tables of all names, and of all modules."""
        parts = [_INDEX]
        for room, names in self.rooms.items():
            rows = (f"| [`{path}`]({path}.md) | {line} |" for path, line in names)
            parts.append("\n".join((f"## {room}\n", "| name | |", "|---|---|", *rows, "")))
        rows = (f"| [`{path}`]({path}.md) | {line} |" for path, (line, _) in self.modules.items())
        parts.append("\n".join(("## Modules\n", "| module | |", "|---|---|", *rows, "")))
        return "\n".join(parts)


def _first_line(member: griffe.Object | griffe.Alias) -> str:
    """First line of a docstring, as a cell of a table."""
    text = member.docstring.value if member.docstring else ""
    return text.splitlines()[0].replace("|", "\\|").replace("``", "`") if text else ""


def _modules(package: Any) -> Iterator[Any]:
    """Modules of the shown rooms, sorted by path."""
    for name, module in sorted(package.modules.items()):
        if not name.startswith("_") and name not in _NOT_SHOWN:
            yield module
            yield from _modules(module)


def _members(module: Any, own: set[str]) -> list[str]:
    """Names of documented members that a module defines and that have no page of their own."""
    return [
        name
        for name, member in module.members.items()
        if not name.startswith("_")
        and not member.is_alias
        and not member.is_module
        and member.docstring
        and member.canonical_path not in own
    ]
