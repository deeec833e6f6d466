"""The rules of the house: who may import whom, what stays free of torch, and what the digest sees."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from common.digest import closure, digest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("common", "papers", "comparison", "vce")
LIGHT = ("common", "common.digest", "common.files", "common.errors", "common.data.fetch", "common.data.registry")


def sources(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path):
    """Dotted names that a file imports, wherever in it, `from a import b` as a.b; a relative import keeps its dots."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def allowed(path):
    """The packages of this repository that a file may import from."""
    parts = path.relative_to(ROOT).parts
    return {
        "common": ["common"],
        "papers": ["common", ".".join(parts[:2])],
        "comparison": ["common", "papers", "comparison"],
        "vce": list(PACKAGES),
    }[parts[0]]


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_the_rooms(path):
    for name in imports(path):
        assert not name.startswith("."), f"{name}: the digest follows absolute imports only"
        if name.split(".")[0] in PACKAGES:
            assert any(f"{name}.".startswith(f"{room}.") for room in allowed(path)), name


@pytest.mark.parametrize("path", sources("papers"), ids=lambda path: str(path.relative_to(ROOT)))
def test_papers_import_nothing_dynamically(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"importlib", "runpy"}
    assert "__import__" not in path.read_text()


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_init_files_are_empty_and_tests_have_none():
    assert [
        path for path in sources("common", "papers", "comparison") if path.name == "__init__.py" and path.stat().st_size
    ] == []
    assert [path for path in sources("tests") if path.name == "__init__.py"] == []


def test_test_files_have_distinct_names():
    counts = Counter(path.name for path in sources("tests"))
    assert [name for name, count in counts.items() if count > 1] == []


def test_pickles_are_never_executed():
    for path in sources(*PACKAGES, "scripts", "tests"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = [
                    word for word in node.keywords if word.arg == "weights_only" and ast.unparse(word.value) == "True"
                ]
                assert safe, f"{path}:{node.lineno}: torch.load without weights_only=True"
        assert "torch.load" not in imports(path), f"{path}: call it as torch.load, so that this test sees it"


FILES = {
    "common/__init__.py": "",
    "common/a.py": '"""A."""\nfrom common import b\n\n\ndef f(x):\n    """F."""\n    return b.g(x)\n',
    "common/b.py": "def g(x):\n    return x + 1\n",
    "common/c.py": "def h(x):\n    from common.b import g\n\n    return g(x)\n",
    "common/unrelated.py": "y = 1\n",
    "papers/x/explain.py": "import os\n\nfrom common.a import f\n\nf(os.getpid())\n",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "old", "new", "changes"),
    [
        ("papers/x/explain.py", "getpid", "getppid", True),
        ("common/a.py", "b.g(x)", "b.g(-x)", True),
        ("common/b.py", "x + 1", "x + 2", True),
        ("common/b.py", "(x)", "(x=0)", True),
        ("common/unrelated.py", "1", "2", False),
        ("common/b.py", "x + 1", "x + 1  # a comment", False),
        ("common/b.py", "x + 1", "(\n        x + 1\n    )", False),
        ("common/a.py", "A.", "Another.", False),
        ("common/a.py", '    """F."""\n', "", False),
        ("common/b.py", "(x):\n", '(x):\n    """New."""\n', False),
    ],
)
def test_the_digest_changes_with_imported_code_and_not_with_prose(root, name, old, new, changes):
    before = digest("papers.x.explain", root)
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new, 1))
    assert (digest("papers.x.explain", root) != before) == changes


def test_the_digest_follows_imports_inside_functions_and_new_ones(root):
    assert closure("common.c", root) == {"common.b", "common.c"}
    assert closure("papers.x.explain", root) == {"papers.x.explain", "common", "common.a", "common.b"}
    before = digest("papers.x.explain", root)
    path = root / "common" / "b.py"
    path.write_text("import common.unrelated\n" + path.read_text())
    assert "common.unrelated" in closure("papers.x.explain", root)
    assert digest("papers.x.explain", root) != before


def test_the_digest_is_the_same_in_another_place_and_process(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "root"
    (other / "papers" / "x").mkdir(parents=True)
    (other / "common").mkdir()
    for name, text in FILES.items():
        (other / name).write_text(text)
    code = "import sys, pathlib, common.digest as d; print(d.digest('papers.x.explain', pathlib.Path(sys.argv[1])))"
    run = subprocess.run([sys.executable, "-c", code, other], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest("papers.x.explain", root)


def test_the_digest_of_nothing_is_an_error(root):
    with pytest.raises(FileNotFoundError):
        digest("papers.x.nothing", root)
