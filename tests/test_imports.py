"""Imports run one way (docs/design.md), and importing the package or asking for help loads no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import unpaired

ROOT = Path(unpaired.__file__).parent
LAYERS = [  # from the ground up; a module imports from its own layer or below
    {"errors", "heap", "winograd", "example"},
    {
        "method",
        "losses",
        "convolution",
        "checkpoint",
    },  # the checkpoint knows tensors and files, no method
    {"networks"},
    {"methods", "registry", "official"},
    {"config", "data", "progress", "pictures", "alarms"},
    {"translator", "page", "settings"},
    {"metrics", "translate", "export"},
    {"domains"},
    {"train"},
    {"report", "choose", "serve"},
    {"cli", "__main__"},
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "unpaired"
        ):
            parts = node.module.split(".")
            yield from (
                [parts[1]]
                if len(parts) > 1
                else [
                    a.name
                    for a in node.names
                    if (ROOT / a.name).exists() or (ROOT / f"{a.name}.py").exists()
                ]
            )


def test_imports_run_one_way():
    files = [p for p in ROOT.rglob("*.py") if p.name != "__init__.py"]
    assert len(files) > 15
    for path in files:
        own = path.relative_to(ROOT).with_suffix("").parts[0]
        for name in imports(path):
            assert RANK[name] <= RANK[own], f"{path.relative_to(ROOT)} imports {name}"


def test_methods_import_no_other_method():
    for path in (ROOT / "methods").glob("*.py"):
        assert "unpaired.methods" not in path.read_text().split('"""', 2)[-1], path.name


ASKED = """
import sys
from contextlib import suppress
import unpaired
from unpaired.cli import main
for words in (["--help"], ["train", "--help"], ["translate", "--help"], ["--version"], ["train", "--no"]):
    with suppress(SystemExit):
        main(words)
slow = {"torch", "numpy", "PIL", "pydantic", "yaml", "rich", "lightning_fabric"} & set(sys.modules)
sys.exit(", ".join(slow) or 0)
"""


def test_help_is_quick():
    """0.1 s of importing on a slow machine; what takes seconds is left to the commands."""
    asked = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    assert "usage: unpaired train" in asked.stdout
