"""The house keeps its floors: lower layers never import higher ones, and each library has one home."""

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*(ROOT / "curator").rglob("*.py"), *(ROOT / "index").rglob("*.py")])

# From the ground up; a layer may import itself and everything below it.
LAYERS = [
    {"curator.types", "curator.errors"},
    {"curator.sources", "curator.models", "curator.value", "curator.metadata", "curator.demo"},
    {"curator.store", "curator.space"},
    {
        "curator.ingest",
        "curator.query",
        "curator.audit",
        "curator.verify",
        "curator.compact",
        "curator.refit",
        "curator.export",
        "curator.doctor",
        "curator.preview",
    },
    {"curator.select", "curator.evaluate", "curator.compare"},
    {"curator.service"},
    {"curator", "curator.cli", "curator.__main__"},
]
# The store's parts speak to the database in SQLAlchemy sessions; everything above the service does not.
SQL = ("curator.metadata", "curator.store", "curator.space", "curator.service", "curator.ingest", "curator.query",
       "curator.verify", "curator.compact", "curator.refit", "curator.select")  # fmt: skip
HOMES = {
    "faiss": ("index",),
    "sqlalchemy": (*SQL, "curator.cli.main"),  # main names its errors
    "alembic": ("curator.metadata",),
    "lark": ("curator.metadata",),
    "transformers": ("curator.models",),
    "tokenizers": (),
    "huggingface_hub": ("curator.models",),
    "peft": ("curator.models",),
    "click": ("curator.cli",),
    "rich": ("curator.cli",),
    "filelock": ("curator.store",),
    "fsspec": ("curator.sources",),
    "yaml": ("curator.sources",),
    "zstandard": ("index.packing",),
    "pyarrow": ("curator.sources", "curator.export", "curator.select", "curator.query.results"),
    "pandas": ("curator.query.results", "curator.audit.results"),
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports_of(path: Path) -> list[str]:
    """Every module that a file imports, inside functions too, but not only for type checkers."""
    return list(_imports_of(path))


def _imports_of(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer_of(module: str) -> int | None:
    """The number of a module's layer; None for what is no module of ours, as a name inside one."""
    for number, layer in enumerate(LAYERS):
        if any(is_in(module, name) for name in layer if name != "curator"):
            return number
    return len(LAYERS) - 1 if module == "curator" else None


def test_every_module_has_a_layer():
    assert {module_of(path) for path in FILES if layer_of(module_of(path)) is None} == {
        module_of(path) for path in FILES if is_in(module_of(path), "index")
    }


def test_index_imports_nothing_of_curator():
    found = {path.name: [m for m in imports_of(path) if is_in(m, "curator")] for path in FILES if "index" in path.parts}
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_lower_layers_import_no_higher_ones():
    wrong = []
    for path in FILES:
        module = module_of(path)
        own = layer_of(module)
        if own is None or module == "curator":  # it opens the service lazily
            continue
        for imported in imports_of(path):
            other = layer_of(imported)
            if other is not None and other > own:
                wrong.append(f"{module} imports {imported}")
    assert wrong == []


@pytest.mark.parametrize("library", HOMES)
def test_each_library_has_one_home(library: str):
    users = {module_of(path) for path in FILES if any(is_in(name, library) for name in imports_of(path))}
    assert {user for user in users if not any(is_in(user, home) for home in HOMES[library])} == set()


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_all_names_what_is_there(path: Path):
    if path.name == "__main__.py":
        return
    module = importlib.import_module(module_of(path))
    names = getattr(module, "__all__", [])
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(module, name)] == []
    assert names or path.name == "__init__.py", "every module says what is public"
