"""Who may import whom, what `--help` may load, and that every setting is read: the house's rules, and proof that the
checker sees each of them broken.
"""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("flaxbert", "data_pipeline")

# flaxbert's floors from the bottom up. A module imports its own floor and those below it.
FLOORS = (
    ("accelerators", "config", "phases", "commands", "flags", "console", "terminal"), ("sharding",),
    ("interop", "model"), ("training",), ("finetuning", "tools"), ("joins",), ("launches",), ("cli",), ("__main__",),
)  # fmt: skip
NOT_FOR_DATA = ("jax", "jaxlib", "flax", "optax", "orbax", "flaxbert")
JOINS = ("flaxbert.cli", "flaxbert.joins", "flaxbert.launches")
DATA_FOR_FLAXBERT = ("data_pipeline.config", "data_pipeline.memory", "data_pipeline.tokenizer")
NO_NAMES = ("utils", "helpers", "common")


def modules(root):
    """(dotted name, path) of every module of the packages below root."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(name, path):
    """Every dotted name that a module imports, at its top, inside functions, or through importlib by a literal name.
    `from a import b` counts as `a.b`: b may be a module.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def is_in(imported, names):
    return any(imported == name or imported.startswith(f"{name}.") for name in names)


def floor(name):
    room = (name.split(".") + [""])[1]
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), None)


def broken_imports(root):
    """One sentence for each import that breaks a rule."""
    return [
        f"{name} imports {imported}: {reason}"
        for name, path in modules(root)
        for imported in sorted(set(imports(name, path)))
        for reason in reasons(name, imported)
    ]


def reasons(name, imported):
    if is_in(imported, ["flaxbert.cli"]) and name not in ("flaxbert.cli", "flaxbert.__main__"):
        yield "nothing imports cli"
    if is_in(name, ["data_pipeline"]):
        if is_in(imported, NOT_FOR_DATA):
            yield "data_pipeline knows nothing of jax and flaxbert"
        return
    if is_in(imported, ["tensorflow"]):
        yield "flaxbert never imports tensorflow"
    if is_in(imported, ["data_pipeline"]) and name not in JOINS and not is_in(imported, DATA_FOR_FLAXBERT):
        yield "of data_pipeline, flaxbert takes config, memory and tokenizer alone"
    if is_in(imported, ["flax.linen"]) and not is_in(name, ["flaxbert.model"]):
        yield "flax.linen lives in flaxbert/model/ alone"
    here, there = floor(name), floor(imported) if is_in(imported, ["flaxbert"]) else None
    if here is not None and there is not None and there > here:
        yield "an arrow never runs back up"


def misplaced_files(root):
    """Modules with a name that says nothing, and modules of flaxbert that stand on no floor."""
    found = [f"{name} says nothing by its name" for name, _ in modules(root) if name.split(".")[-1] in NO_NAMES]
    homeless = [name for name, _ in modules(root) if is_in(name, ["flaxbert"]) and floor(name) is None]
    return found + [f"{name} stands on no floor" for name in homeless if name != "flaxbert"]


def unread_settings(root):
    """Fields of the dataclasses in config.py that no code reads as an attribute, outside their class or in a property
    or method of it that is read outside. By name alone: two fields of one name count as one.
    """
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for _, path in modules(root)}
    classes = [
        node for path, tree in trees.items() if path.name == "config.py" for node in tree.body
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(mark) for mark in node.decorator_list)
    ]
    unread = []
    for kind in classes:
        own = set(map(id, ast.walk(kind)))
        outside = {name for tree in trees.values() for name in attributes_read(tree, without=own)}
        methods = [node for node in kind.body if isinstance(node, ast.FunctionDef) and node.name in outside]
        read = outside | {name for method in methods for name in attributes_read(method)}
        fields = [node.target.id for node in kind.body if isinstance(node, ast.AnnAssign)]
        unread += [f"{kind.name}.{field} is read nowhere" for field in fields if field not in read]
    return unread


def attributes_read(tree, without=frozenset()):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in without:
            yield node.attr


@pytest.mark.parametrize("check", [broken_imports, misplaced_files, unread_settings])
def test_the_house_keeps_its_rules(check):
    assert check(ROOT) == []


def test_the_checker_has_something_to_check():
    names = [name for name, _ in modules(ROOT)]
    assert {"flaxbert.cli", "flaxbert.training.loop", "data_pipeline.stream", "data_pipeline"} <= set(names)
    found = {name: set(imports(name, path)) for name, path in modules(ROOT)}
    assert "jax.numpy" in found["flaxbert.model.attention"]
    assert "data_pipeline.stream.batches" in found["flaxbert.launches"], "an import inside a function is seen"


@pytest.mark.parametrize("path, line, reason", [
    ("data_pipeline/masking.py", "import jax", "knows nothing of jax"),
    ("data_pipeline/masking.py", "def f():\n    import jax.numpy as jnp", "knows nothing of jax"),
    ("data_pipeline/masking.py", "from flax import linen", "knows nothing of jax"),
    ("data_pipeline/masking.py", "from orbax.checkpoint import x", "knows nothing of jax"),
    ("data_pipeline/masking.py", "from flaxbert.config import ModelConfig", "knows nothing of jax"),
    ("data_pipeline/masking.py", "import importlib\nimportlib.import_module('optax')", "knows nothing of jax"),
    ("flaxbert/training/loop.py", "def f():\n    import tensorflow as tf", "never imports tensorflow"),
    ("flaxbert/cli.py", "from tensorflow.data import Dataset", "never imports tensorflow"),
    ("flaxbert/training/loop.py", "from data_pipeline.stream import batches", "config, memory and tokenizer alone"),
    ("flaxbert/training/loop.py", "from data_pipeline import store", "config, memory and tokenizer alone"),
    ("flaxbert/training/loop.py", "import data_pipeline", "config, memory and tokenizer alone"),
    ("flaxbert/training/step.py", "import flax.linen as nn", "flax.linen lives in"),
    ("flaxbert/training/step.py", "from flax import linen", "flax.linen lives in"),
    ("flaxbert/tools/load.py", "from flaxbert.cli import main", "nothing imports cli"),
    ("flaxbert/tools/load.py", "from .. import cli", "nothing imports cli"),
    ("flaxbert/__init__.py", "from . import cli", "nothing imports cli"),
    ("flaxbert/model/heads.py", "from flaxbert.training.objective import loss_and_sums", "never runs back up"),
    ("flaxbert/model/heads.py", "def f():\n    from ..training import step", "never runs back up"),
    ("flaxbert/training/loop.py", "from flaxbert import tools", "never runs back up"),
    ("flaxbert/sharding.py", "from flaxbert.model.encoder import gather_positions", "never runs back up"),
    ("flaxbert/config.py", "from flaxbert.sharding import constrain", "never runs back up"),
    ("flaxbert/interop/google.py", "from flaxbert.finetuning import tasks", "never runs back up"),
])  # fmt: skip
def test_the_checker_sees_a_forbidden_import(tmp_path, path, line, reason):
    write(tmp_path, path, line)
    assert [sentence for sentence in broken_imports(tmp_path) if reason in sentence]


@pytest.mark.parametrize("path, line", [
    ("flaxbert/cli.py", "from data_pipeline.store import open_corpus"),
    ("flaxbert/training/run.py", "from data_pipeline import tokenizer"),
    ("flaxbert/training/run.py", "from data_pipeline.config import DataConfig"),
    ("flaxbert/model/heads.py", "import flax.linen as nn\nfrom .encoder import dense\nfrom flaxbert import sharding"),
    ("flaxbert/interop/google.py", "from flaxbert.model import encoder"),
    ("data_pipeline/stream.py", "import tensorflow as tf\nfrom . import store\nimport jaxtyping"),
])  # fmt: skip
def test_the_checker_lets_a_lawful_import_pass(tmp_path, path, line):
    write(tmp_path, path, line)
    assert broken_imports(tmp_path) == []


@pytest.mark.parametrize("path, reason", [
    ("flaxbert/training/utils.py", "says nothing"), ("data_pipeline/helpers.py", "says nothing"),
    ("flaxbert/model/common.py", "says nothing"), ("flaxbert/misc/thing.py", "no floor"), ("flaxbert/x.py", "no floor"),
])  # fmt: skip
def test_the_checker_sees_a_misplaced_file(tmp_path, path, reason):
    write(tmp_path, path, "")
    assert [sentence for sentence in misplaced_files(tmp_path) if reason in sentence]


def test_the_checker_sees_a_setting_that_nobody_reads(tmp_path):
    write(tmp_path, "flaxbert/config.py", """
import dataclasses
@dataclasses.dataclass(frozen=True)
class C:
    used: int = 0
    through_a_property: int = 0
    through_a_dead_property: int = 0
    only_checked: int = 0
    only_written: int = 0
    def __post_init__(self):
        assert self.only_checked > 0
    @property
    def alive(self):
        return self.through_a_property
    @property
    def dead(self):
        return self.through_a_dead_property
""")
    write(tmp_path, "flaxbert/cli.py", "def f(c, d):\n    d.only_written = 1\n    return c.used + c.alive")
    unread = [sentence.split()[0] for sentence in unread_settings(tmp_path)]
    assert unread == ["C.through_a_dead_property", "C.only_checked", "C.only_written"]


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


def python(code):
    """The JSON that a fresh interpreter prints last when it runs the code."""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, env=os.environ, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


BLOCKER = """
import importlib, json, pkgutil, sys
class Blocker:
    names = set()
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in self.names:
            raise ImportError(f'{name} is blocked')
blocker = Blocker()
sys.meta_path.insert(0, blocker)
def import_all(package):
    found = importlib.import_module(package)
    names = [m.name for m in pkgutil.walk_packages(found.__path__, package + '.')]
    for name in names:
        if not name.endswith('.__main__'):
            importlib.import_module(name)
    return len(names)
"""


def test_every_module_imports_without_tensorflow_and_the_pipeline_without_jax_too():
    counts = python(BLOCKER + """
blocker.names = {'tensorflow', 'tensorflow_datasets', 'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'apache_beam'}
data = import_all('data_pipeline')
blocker.names = {'tensorflow', 'tensorflow_datasets', 'apache_beam', 'torch', 'transformers'}
print(json.dumps([data, import_all('flaxbert')]))
""")
    assert min(counts) > 10


def test_no_help_page_loads_jax_or_tensorflow():
    heavy = python("""
import json, sys
from flaxbert import cli
pages = [['--help'], [], ['--version'], ['pretrain', 'bert_tiny', '--help']]
for command in pages + [[name, '--help'] for name in cli.COMMANDS]:
    try:
        status = cli.main(command)
    except SystemExit as stop:
        status = stop.code
    assert not status, (command, status)
print(json.dumps(sorted({'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'tensorflow'} & sys.modules.keys())))
""")
    assert heavy == []
