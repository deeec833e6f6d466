"""One hash over a module's code and everything it imports from this repository (DESIGN: Snakemake sees no imports).

Hashes are taken over the syntax tree without docstrings, so comments, formatting and prose never trigger a rebuild.
Imports no torch, because the Snakefile imports it.
"""

import ast
import functools
import hashlib
from pathlib import Path

from common.files import ROOT

PACKAGES = ("common", "papers", "comparison")


def digest(module: str, root: Path = ROOT) -> str:
    """sha256 (16 hex digits) of `module`, a dotted name, and its import closure under common/, papers/, comparison/.

    Raises FileNotFoundError when the module has no file below `root`.
    """
    sha = hashlib.sha256()
    for name in sorted(closure(module, root)):
        path = _file(name, root)
        sha.update(f"{name}\n{_code(path, path.read_text())}\n".encode())
    return sha.hexdigest()[:16]


def closure(module: str, root: Path = ROOT) -> set[str]:
    """Dotted names of `module` and of every repository module it imports, directly or not."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo.extend(_imports(_file(name, root), root))
    return seen


def _file(module: str, root: Path) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(path: Path, root: Path) -> set[str]:
    names = _imported(path, path.read_text())
    return {name for name in names if name.split(".")[0] in PACKAGES and _file(name, root).is_file()}


# with the text as a key: the workflow asks for ninety closures of the same modules, and a changed file is another
@functools.cache
def _imported(path: Path, text: str) -> frozenset[str]:
    """Dotted names that an import in the text may mean."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text, filename=str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return frozenset(names)


@functools.cache
def _code(path: Path, text: str) -> str:
    """The syntax tree as text, docstrings left out."""
    tree = ast.parse(text, filename=str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return ast.dump(tree)
