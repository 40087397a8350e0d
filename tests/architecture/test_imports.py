"""Who may import whom, as DESIGN has it: read from the source, so that no backend is needed."""

import ast
from graphlib import TopologicalSorter

import pytest

from tests.source_tree import PACKAGES, ROOT, TWINS, exported, imports, modules

# The layers of pyro_amortize and numpyro_amortize. A file imports from its own layer or a lower
# one. A new file at the top of a package needs a place here.
LAYERS = (
    {
        "supports",
        "bijections",
        "discrete",
        "ordering",
        "levels",
        "loops",
        "pooling",
        "structure",
        "arguments",
        "alternatives",
        "covariates",
        "missing",
        "obs_mask",
        "simulate",
        "checks",
        "fixed",
        "sites",
        "tracing",
        "interpreter",
        "recorded_graph",
        "recording",
        "dependencies",
        "reading",
        "stand_ins",
        "layout",
        "measure",
        "observations",
        "standardisation",
        "summaries",
        "networks",
        "attention",
        "decoders",
        "history",
        "compiler",
        "dependence",
    },
    {"densities", "embeddings"},
    {"guides", "objectives", "handlers"},
    {
        "fit",
        "fit_members",
        "early_stopping",
        "sequential",
        "clipping",
        "training_step",
        "compiled",
        "padding",
        "posterior",
        "at_data",
        "diagnosing",
        "sensitivity",
        "ood_score",
        "auto_guide",
        "nuts",
        "standard_space",
        "recorded_gradient",
        "conditioned",
        "contexts",
        "calibration",
        "importance",
        "collapse",
        "export",
        "storage",
        "refine",
        "pretrain",
    },
    {"__init__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
SAME_LAYER_BUT_APART = {("densities", "embeddings"), ("guides", "objectives")}
DRAWERS = {"utils", "common", "helpers", "core", "misc"}
# Torch's notes on extending it name this module.
WITHOUT_A_PUBLIC_NAME = {("recording.py", "torch.utils._python_dispatch.TorchDispatchMode")}
HOSTS = {"pyro", "torch", "numpyro", "jax", "equinox", "optax"}
FOREIGN = {
    "pyro_amortize": {"numpyro_amortize", "numpyro", "jax", "equinox", "optax"},
    "numpyro_amortize": {"pyro_amortize", "pyro", "torch"},
    "amortize_diagnostics": {*TWINS, *HOSTS},
}
ONLY_INSIDE_FUNCTIONS = {"arviz", "arviz_base", "arviz_plots", "matplotlib", "xarray"}

each_package = pytest.mark.parametrize("package", PACKAGES)
each_twin = pytest.mark.parametrize("package", TWINS)


def part(path: str) -> str:
    """The layer's name for a file: its folder, or itself at the top of the package."""
    return path.split("/")[0].removesuffix(".py")


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_within(package: str) -> list[tuple[str, str]]:
    """Pairs (importing file, imported file) of a package, as paths inside it."""
    trees = modules(package)
    paths = {f"{package}.{module_name(path)}": path for path in trees}
    paths[package] = "__init__.py"
    found = []
    for path, tree in trees.items():
        for name, _ in imports(tree):
            if name.split(".")[0] != package:
                continue
            # `from package.module import name` names a module or something inside one.
            target = paths.get(name) or paths.get(name.rpartition(".")[0])
            found.append((path, target or f"{name} does not exist"))
    return found


def classes(tree: ast.Module) -> list[str]:
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


@each_package
def test_package_exists(package):
    assert exported(modules(package)["__init__.py"])


@each_package
def test_imports_are_absolute(package):
    found = [
        (path, name)
        for path, tree in modules(package).items()
        for name, node in imports(tree)
        if getattr(node, "level", 0)
    ]
    assert not found


@each_package
def test_no_package_imports_another_host(package):
    found = [
        (path, name)
        for path, tree in modules(package).items()
        for name, _ in imports(tree)
        if name.split(".")[0] in FOREIGN[package]
    ]
    assert not found


@each_twin
def test_imports_point_to_the_same_layer_or_a_lower_one(package):
    unknown = {part(path) for path in modules(package)} - set(RANK)
    assert not unknown, f"give {unknown} a place in LAYERS"
    upward = [
        (path, target)
        for path, target in imports_within(package)
        if RANK[part(path)] < RANK.get(part(target), len(LAYERS))
    ]
    assert not upward


@each_package
def test_imports_have_no_cycle(package):
    graph = {}
    for path, target in imports_within(package):
        graph.setdefault(path, set()).add(target)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@each_twin
def test_folders_of_one_layer_stay_apart(package):
    found = [
        (path, target)
        for path, target in imports_within(package)
        if (part(path), part(target)) in SAME_LAYER_BUT_APART
        or (part(target), part(path)) in SAME_LAYER_BUT_APART
    ]
    assert not found


@each_twin
def test_only_the_posterior_stores(package):
    found = [path for path, target in imports_within(package) if part(target) == "storage"]
    assert set(found) <= {"posterior.py"}


@each_twin
def test_one_density_never_imports_another(package):
    trees = modules(package)
    families = {
        path
        for path, tree in trees.items()
        if part(path) == "densities"
        and not path.endswith(("base.py", "__init__.py"))
        and any(name.endswith("Density") for name in classes(tree))
    }
    assert families
    found = [pair for pair in imports_within(package) if families.issuperset(pair)]
    assert not found


@each_twin
def test_hosts_are_used_through_their_public_names(package):
    found = [
        (path, name)
        for path, tree in modules(package).items()
        for name, _ in imports(tree)
        if name.split(".")[0] in HOSTS and any(word.startswith("_") for word in name.split("."))
    ]
    assert set(found) <= WITHOUT_A_PUBLIC_NAME


def test_diagnostics_import_arviz_and_plots_lazily():
    found = []
    for path, tree in modules("amortize_diagnostics").items():
        at_the_top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        found += [
            (path, name)
            for name, _ in imports(ast.Module(at_the_top, []))
            if name.split(".")[0] in ONLY_INSIDE_FUNCTIONS
        ]
    assert not found


@each_package
def test_init_only_exports_and_its_names_are_sorted(package):
    tree = modules(package)["__init__.py"]
    kinds = {type(node) for node in tree.body}
    assert kinds == {ast.Expr, ast.ImportFrom, ast.Assign}
    names = exported(tree)
    imported = {alias.name for _, node in imports(tree) for alias in node.names}
    assert set(names) == imported
    # ruff's order: constants, classes, functions.
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))


@each_package
def test_files_are_named_by_role_and_small(package):
    for path in modules(package):
        assert part(path) not in DRAWERS
        assert path.split("/")[-1].removesuffix(".py") not in DRAWERS, path
        num_lines = len((ROOT / package / path).read_text(encoding="utf-8").splitlines())
        assert num_lines <= 500, f"{package}/{path} has {num_lines} lines: split it by role"


@each_package
def test_no_assert_in_package_code(package):
    found = [
        f"{package}/{path}:{node.lineno}"
        for path, tree in modules(package).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert not found


@each_package
def test_package_is_typed(package):
    assert (ROOT / package / "py.typed").exists()
