"""Which source code a result depends on: a class's module and everything of its own that it imports, hashed.

So a run is made anew when the code of its own data set, model or methods changes, and when nothing else does. "Of its
own" is the class's package, diffseg, and any other module that is not installed: what pip installed is recorded by
version in run.json.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_STDLIB = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")})


def source_hash(modules: Iterable[str], follow: bool = True) -> str:
    """Hash (12 hex digits) of the sources of modules and, if `follow`, of all of their own that they import.

    Imports inside functions count; those for type checkers do not, nor what is imported by a computed name.
    """
    todo, sources = list(modules), {}
    own = {name.partition(".")[0] for name in todo} | {"diffseg"}
    while todo:
        name = todo.pop()
        if name in sources:
            continue
        file = _file(name, name.partition(".")[0] in own)
        if file is None:
            continue
        source = file.read_bytes()
        sources[name] = hashlib.sha256(source).hexdigest()
        if follow:
            todo += _imports(name, file.name == "__init__.py", source)
    return hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:12]


@cache
def _file(name: str, own: bool) -> Path | None:
    """The source file of a module; None: it has none, or it is installed and of no interest."""
    top = name.partition(".")[0]
    if not own and _is_installed(top):
        return None
    around = _file(name.rpartition(".")[0], own) if "." in name else None
    if around and around.name != "__init__.py":
        return None  # a thing in a module: to ask for it would import that module
    try:
        spec = find_spec(name)
    except (ImportError, ValueError, AttributeError):  # a name in a module, not a module; __main__
        return None
    origin = Path(spec.origin) if spec and spec.origin and spec.has_location else None
    return origin if origin and origin.suffix == ".py" else None


@cache
def _is_installed(top: str) -> bool:
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return True
    places = list(spec.submodule_search_locations or [spec.origin or ""]) if spec else []
    return not places or any(
        place.startswith(_STDLIB) or not Path(place).exists() or any(Path(place).parent.glob("*.dist-info"))
        for place in map(str, places)  # pip leaves such a folder beside what it installs, in any environment
    )


@cache
def _imports(name: str, is_package: bool, source: bytes) -> tuple[str, ...]:
    """Names of the modules, or of things in modules, that a module's source imports."""
    package = name if is_package else name.rpartition(".")[0]
    names: list[str] = []
    for node in _executed(ast.parse(source).body):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            if module != "diffseg":  # its __init__ holds a version
                names.append(module)
            names += (f"{module}.{alias.name}" for alias in node.names)
    return tuple(names)


def _executed(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All statements, those inside others too, but not those under `if TYPE_CHECKING:`."""
    for statement in statements:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            continue
        yield statement
        for inside in ("body", "handlers", "cases", "orelse", "finalbody"):
            yield from _executed(getattr(statement, inside, ()))
