"""The source of our packages as syntax trees, read without importing a backend."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TWINS = ("pyro_amortize", "numpyro_amortize")
PACKAGES = (*TWINS, "amortize_diagnostics")


def modules(package: str) -> dict[str, ast.Module]:
    """Every file of a package by its path inside it: `{"guides/amortized.py": tree}`."""
    root = ROOT / package
    return {
        path.relative_to(root).as_posix(): ast.parse(
            path.read_text(encoding="utf-8"), filename=str(path)
        )
        for path in sorted(root.rglob("*.py"))
    }


def imports(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Dotted names that a file imports, at any depth: `a.b.c` for `from a.b import c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def exported(tree: ast.Module) -> list[str] | None:
    """The list `__all__` of a module, or None."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None
