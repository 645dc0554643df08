"""Finding a method by name: a file in `methods/`, or any importable module that defines one."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from unpaired.errors import ConfigProblem

if TYPE_CHECKING:
    from unpaired.method import Method

FOLDER = Path(__file__).parent / "methods"


def method_names() -> tuple[str, ...]:
    """The methods that come with the tool: the files of the folder."""
    return tuple(sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__"))


def method_card(name: str) -> dict[str, Any]:
    """`layout` and the `card` of a method that comes with the tool, read from its file without importing torch."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    said = {
        target.id: node.value
        for parent in tree.body
        if isinstance(parent, ast.ClassDef)
        for node in parent.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("layout", "card")
    }
    return {"layout": ast.literal_eval(said["layout"]), **ast.literal_eval(said["card"])}


def find_method(name: str) -> type[Method]:
    """The method class called `name`: "munit", or "my_lab.cut" for a file outside the repository.

    A module outside is imported, and so its code is run: also where a config or a model file names it.
    """
    from unpaired.method import Method

    plain = name.removesuffix(".py")
    if "." not in plain and name not in method_names():
        if Path(f"{plain}.py").is_file():
            raise ConfigProblem(
                f"method.name: {name!r} is not how a file of yours is named: put {plain}.py into a folder, and write "
                f"folder.{plain} for folder/{plain}.py."
            )
        near = difflib.get_close_matches(name.casefold(), method_names(), 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(method_names())}."
        raise ConfigProblem(f"method.name: there is no method {name!r}: {hint}")
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigProblem(
            f"method.name: {name!r} is not the name of a module: write my_lab.cut for my_lab/cut.py."
        )
    if name.split(".")[0] in sys.stdlib_module_names:  # importing some of it acts at once
        raise ConfigProblem(f"method.name: {name} belongs to Python and holds no method.")
    module_name = name if "." in name else f"unpaired.methods.{name}"
    try:
        module = imported(module_name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigProblem(
                f"method.name: {name} needs the package {error.name}: install it."
            ) from error
        raise ConfigProblem(
            f"method.name: no module '{name}' can be imported from here: run from the folder that holds "
            f"{name.split('.')[0]}, or put that folder on PYTHONPATH."
        ) from error
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, Method)
            and value.__module__ == module.__name__
        ):
            return value
    raise ConfigProblem(f"method.name: the module '{name}' defines no Method.")


def imported(name: str) -> ModuleType:
    """A module; one in a file beside the user is found as `python -c` would find it."""
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    finally:
        with suppress(ValueError):  # it may have changed the path itself
            sys.path.remove("")
