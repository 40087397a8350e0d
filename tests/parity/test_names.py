"""The two packages say the same things: compared by syntax tree, so that no backend is needed.

Compared are the files, `__all__`, and for every public function, class and method its arguments
(names, order, kinds, defaults, without `rng_key` and `params`) and first docstring line; for
dataclasses their fields. Annotations differ by nature. Differences that are meant stand in
`allowed.toml` with a reason.
"""

import ast
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.source_tree import TWINS, exported, modules

ALLOWED = Path(__file__).with_name("allowed.toml")
# JAX passes its random state and its parameters explicitly.
ONLY_NUMPYRO_ARGUMENTS = {"rng_key", "params"}
# torch's name for the call of a module.
SAME_METHOD = {"forward": "__call__"}
CALLED_BY_USERS = {"__init__", "__call__"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def described(package: str) -> dict[str, str]:
    """What a package offers: `{"fit.py::fit": "(model, guide, *, ...) First line."}`."""
    found = {}
    for path, tree in modules(package).items():
        found[path] = f"file exporting {exported(tree)}" if exported(tree) else "file"
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and is_public(node.name):
                found[f"{path}::{node.name}"] = f"class {fields(node)} {first_line(node)}"
                for method in node.body:
                    if isinstance(method, Function) and is_public_method(method.name):
                        name = SAME_METHOD.get(method.name, method.name)
                        found[f"{path}::{node.name}.{name}"] = signature(method)
            elif isinstance(node, Function) and is_public(node.name):
                found[f"{path}::{node.name}"] = signature(node)
    return found


def is_public(name: str) -> bool:
    return not name.startswith("_")


def is_public_method(name: str) -> bool:
    return is_public(name) or name in CALLED_BY_USERS


def signature(node: Function) -> str:
    """Arguments with kinds and defaults, what decorates them, and the first docstring line."""
    kinds = [
        ast.unparse(decorator)
        for decorator in node.decorator_list
        if ast.unparse(decorator) in {"property", "classmethod", "staticmethod"}
    ]
    return " ".join([*kinds, f"({arguments(node.args)})", first_line(node)])


def arguments(args: ast.arguments) -> str:
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    words = [argument(arg, default) for arg, default in zip(positional, defaults, strict=True)]
    if args.vararg:
        words.append(f"*{args.vararg.arg}")
    elif args.kwonlyargs:
        words.append("*")
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        words.append(argument(arg, default))
    if args.kwarg:
        words.append(f"**{args.kwarg.arg}")
    words = [word for word in words if word]
    return ", ".join(words[:-1] if words[-1:] == ["*"] else words)


def argument(arg: ast.arg, default: ast.expr | None) -> str:
    if arg.arg in ONLY_NUMPYRO_ARGUMENTS:
        return ""
    return arg.arg if default is None else f"{arg.arg}={ast.unparse(default)}"


def fields(node: ast.ClassDef) -> str:
    """Names and defaults of the public fields of a dataclass, in order; nothing for others."""
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return ""
    words = [
        field.target.id + (f"={ast.unparse(field.value)}" if field.value else "")
        for field in node.body
        if isinstance(field, ast.AnnAssign) and is_public(field.target.id)
    ]
    return f"({', '.join(words)})"


def first_line(node: ast.AST) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def differences(left: dict[str, str], right: dict[str, str]) -> dict[str, tuple]:
    return {
        name: (left.get(name, "missing"), right.get(name, "missing"))
        for name in sorted({*left, *right})
        if left.get(name) != right.get(name)
    }


def allowed() -> dict[str, str]:
    entries = tomllib.loads(ALLOWED.read_text(encoding="utf-8")).get("difference", [])
    return {entry["name"]: entry["reason"] for entry in entries}


def test_packages_offer_the_same():
    found = differences(*map(described, TWINS))
    unexcused = {
        name: pair
        for name, pair in found.items()
        if not any(fnmatchcase(name, pattern) for pattern in allowed())
    }
    assert not unexcused, "\n".join(
        f"{name}\n    pyro    {pyro}\n    numpyro {numpyro}"
        for name, (pyro, numpyro) in unexcused.items()
    )


def test_every_excuse_is_needed_and_has_a_reason():
    found = differences(*map(described, TWINS))
    for pattern, reason in allowed().items():
        assert any(fnmatchcase(name, pattern) for name in found), f"{pattern} excuses nothing"
        assert len(reason.split()) >= 3, f"{pattern}: say why"


def compare_sources(monkeypatch, pyro: str, numpyro: str) -> dict[str, tuple]:
    """The differences of two packages of one file each."""
    trees = {"pyro": {"m.py": ast.parse(pyro)}, "numpyro": {"m.py": ast.parse(numpyro)}}
    monkeypatch.setattr(f"{__name__}.modules", trees.__getitem__)
    return differences(described("pyro"), described("numpyro"))


@pytest.mark.parametrize(
    ("pyro", "numpyro"),
    [
        ("def f(a, *, b=1): 'One.'", "def f(a, *, b=2): 'One.'"),
        ("def f(a, b): 'One.'", "def f(b, a): 'One.'"),
        ("def f(a, b): 'One.'", "def f(a, *, b): 'One.'"),
        ("def f(a): 'One.'", "def f(a): 'Two.'"),
        ("def f(a): 'One.'", "class f: 'One.'"),
        ("class A:\n  def m(self): 'One.'", "class A:\n  def n(self): 'One.'"),
        ("class A:\n  @property\n  def m(self): 'One.'", "class A:\n  def m(self): 'One.'"),
        ("@dataclass\nclass A:\n  x: int = 1", "@dataclass\nclass A:\n  x: int = 2"),
        ("__all__ = ['a']", "__all__ = ['b']"),
    ],
)
def test_comparison_sees_each_kind_of_difference(monkeypatch, pyro, numpyro):
    assert compare_sources(monkeypatch, pyro, numpyro)


@pytest.mark.parametrize(
    ("pyro", "numpyro"),
    [
        ("def f(a, *, b=1): 'One.'", "def f(rng_key, params, a, *, b=1): 'One.'"),
        ("def f(a): 'One.'", "def f(a: int, *, rng_key=None) -> int: 'One.'"),
        ("class A:\n  def forward(self, x): 'One.'", "class A:\n  def __call__(self, x): 'One.'"),
        ("def _f(a): 'One.'", "def _g(b): 'Two.'"),
    ],
)
def test_comparison_ignores_what_differs_by_nature(monkeypatch, pyro, numpyro):
    assert not compare_sources(monkeypatch, pyro, numpyro)
