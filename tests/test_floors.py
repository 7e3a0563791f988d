import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import drift

PACKAGE = Path(drift.__file__).parent
FLOORS = [
    {"types", "errors", "event_loop"},
    {"secrets", "files", "yaml_files", "template_limits"},
    {"terminal", "checksums"},
    {"keywords", "manifest", "progress", "registry"},
    {"endings", "record"},
    {"own_process"},
    {"chat", "problems"},
    {"policies"},
    {"verifiers"},
    {"environments"},
    {"dataset"},
    {"weights"},
    {"rollouts", "training", "exports"},
    {"evaluation", "baselines"},
    {"reporting"},
    {"viewer"},
    {"api", "artifacts", "publishing", "recipe", "serving"},
    {"preflight", "recipe_schema", "run_directory", "scaffold"},
    {"pipeline"},
    {"audit", "comparison"},
    {"cli", "completion", "verbs", "__main__"},
]
# Floors whose parts know nothing of one another.
APART = [FLOORS[6], FLOORS[12], FLOORS[13]]
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
# Attributes of the package itself that come from no other module.
OWN_ATTRIBUTES = {"__version__", "__doc__", "__file__", "__name__"}
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]

pytestmark = pytest.mark.filterwarnings("error::SyntaxWarning")


@functools.cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def part_of(path):
    """Which part of the package a file belongs to: its folder, or its own name at the top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(tree, package):
    """(line, part) of every import of drift anywhere in a file; ``package`` is the dotted package it lies in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                if top == "drift" and rest:
                    yield node.lineno, rest.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            if source == "drift":
                yield from ((node.lineno, alias.name) for alias in node.names if alias.name not in OWN_ATTRIBUTES)
            elif source.startswith("drift."):
                yield node.lineno, source.split(".")[1]


def against_the_floors(importer, imported):
    """Why ``importer`` must not import ``imported``, or None."""
    if imported not in FLOOR_OF:
        # `from drift import evaluate` reaches the top from below; so does a name that isn't on any floor.
        return f"{imported!r} is on no floor: import the module that defines it, or give a new part its floor here"
    if FLOOR_OF[imported] > FLOOR_OF[importer]:
        return f"{importer} (floor {FLOOR_OF[importer]}) imports {imported} (floor {FLOOR_OF[imported]})"
    if imported != importer and any({importer, imported} <= group for group in APART):
        return f"{importer} and {imported} stand apart on one floor"
    return None


def test_imports_run_down_the_floors():
    found = []
    for path in FILES:
        if path == PACKAGE / "__init__.py":
            continue
        assert part_of(path) in FLOOR_OF, f"give {part_of(path)!r} a floor"
        package = ".".join(["drift", *path.relative_to(PACKAGE).parts[:-1]])
        found += [
            f"{path.relative_to(PACKAGE)}:{line}: {reason}"
            for line, imported in imported_parts(parse(path), package)
            if (reason := against_the_floors(part_of(path), imported))
        ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("importer", "source", "allowed"),
    [
        ("weights", "from drift.errors import require", True),
        ("weights", "from drift.weights.groups import group_sum", True),
        ("problems", "from drift.chat import Chat", False),  # apart on one floor
        ("policies", "import drift.environments.base", False),  # upward
        ("verifiers", "from drift.policies.base import Policy", True),
        ("environments", "from drift.verifiers import make_verifier", True),
        ("verifiers", "from drift.environments.answers import extract_answer", False),
        ("training", "def f():\n    from drift.rollouts import episode", False),  # inside a function too
        ("evaluation", "from drift.rollouts.collect import collect", True),
        ("evaluation", "from drift.keywords import by_fields", True),
        ("dataset", "from drift import evaluation", False),
        ("dataset", "from drift import train", False),  # the API through the package
        ("dataset", "from drift import __version__", True),
        ("recipe", "from drift.api import rollout", True),  # one floor, not apart
        ("types", "from .errors import require", True),
        ("types", "from . import api", False),
        ("cli", "import numpy, os.path\nfrom drifting import x", True),
    ],
)
def test_the_floor_check_itself_tells_right_from_wrong(importer, source, allowed):
    # Relative imports are read from the package's top here.
    reasons = [against_the_floors(importer, part) for _, part in imported_parts(ast.parse(source), "drift")]
    assert all(reason is None for reason in reasons) == allowed


def runtime_imports(body):
    """Imports that run when a module is loaded: not those of functions, nor those for type checkers."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from runtime_imports(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody", "handlers"):
                inner = getattr(node, field, [])
                yield from runtime_imports(inner if isinstance(inner, list) else [])


def test_the_package_imports_nothing_of_itself_when_loaded():
    names = {
        name
        for node in runtime_imports(parse(PACKAGE / "__init__.py").body)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."])
    }
    assert not {name for name in names if name.split(".")[0] in ("drift", "")}


HEAVY = ("torch", "transformers", "numpy", "pyarrow", "matplotlib", "accelerate", "peft", "datasets", "tokenizers")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import drift", ""),
        ("from drift.cli import main; assert main(['--help']) == 0", "quickstart"),
        ("from drift.cli import main; assert main(['--version']) == 0", drift.__version__),
    ],
    ids=["import drift", "drift --help", "drift --version"],
)
def test_loading_the_package_and_its_help_load_nothing_heavy(code, said):
    script = f"{code}\nimport sys\nprint('loaded:', [name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_the_help_of_no_command_loads_torch():
    script = (
        "import sys\n"
        "from drift.cli import VERBS, main\n"
        "for verb in VERBS:\n"
        "    try:\n"
        "        main([verb, '--help'])\n"
        "    except SystemExit:\n"
        "        pass\n"
        "    print('after', verb, [name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    after = [line.split(maxsplit=2)[1:] for line in done.stdout.splitlines() if line.startswith("after ")]
    assert {"run", "train", "evaluate"} <= {verb for verb, _ in after}
    assert {loaded for _, loaded in after} == {"[]"}


def undocumented(tree):
    """Names of public classes, functions and methods without a docstring; what lies inside a function is exempt."""

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.If | ast.Try):
                yield from visit([*node.body, *node.orelse], prefix)
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            if not (ast.get_docstring(node) or "").strip():
                yield f"{prefix}{node.name} (line {node.lineno})"
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, f"{prefix}{node.name}.")

    if not (ast.get_docstring(tree) or "").strip():
        yield "the module"
    yield from visit(tree.body, "")


def test_everything_public_has_a_docstring():
    found = [f"{name}: {each}" for name in NAMES for each in undocumented(parse(PACKAGE / name))]
    assert not found, f"no docstring: {', '.join(found)}"


def test_the_docstring_check_itself_finds_what_is_missing():
    source = (
        "class Shown:\n"
        "    '''Doc.'''\n"
        "    def method(self): ...\n"
        "    @property\n"
        "    def size(self): ...\n"
        "    def _private(self): ...\n"
        "    def __len__(self): ...\n"
        "class _Hidden:\n"
        "    def method(self): ...\n"
        "async def run():\n"
        "    def inner(): ...\n"
        "def blank():\n"
        "    ''' '''\n"
        "def told():\n"
        "    '''Doc.'''\n"
    )
    found = [entry.split(" (")[0] for entry in undocumented(ast.parse(source))]
    assert found == ["the module", "Shown.method", "Shown.size", "run", "blank"]


def test_coroutines_are_run_where_a_loop_may_be_running_already() -> None:
    runs = ("asyncio.run(", "asyncio.Runner(", "run_until_complete(")
    found = [name for name, path in zip(NAMES, FILES, strict=True) if any(each in path.read_text() for each in runs)]
    # The other one has a thread of its own, in which no loop runs before.
    assert found == ["event_loop.py", "policies/background.py"]
