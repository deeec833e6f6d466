"""The artifact registry: what a pointer must say, and how one is written."""

import hashlib
import subprocess
import sys

import pytest

from common.data import registry
from common.errors import VceError

FACTS = {"source": "pkg==1.0", "member": "pkg/a.bin", "license": "MIT", "url": "https://example.org/a.bin"}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "a.bin").write_bytes(b"twelve bytes")
    registry.add(tmp_path / "a.bin", **FACTS, root=tmp_path)
    return tmp_path


def test_every_committed_pointer_is_sound_and_its_carrier_pinned():
    pinned = (registry.ROOT / "data" / "carriers.lock").read_text()
    names = registry.names()
    assert {"mnist_5k.csv.gz", "efficientnet-lite0.pth", "mnist_lenet5_advtrained.pt", "mnist_lenet5_clntrained.pt"} < {
        *names
    }
    assert sum(name.startswith("imagenet_") for name in names) == 20
    for artifact in map(registry.read, names):
        assert artifact.source is None or f"{artifact.source} " in pinned


def test_a_pointer_reads_back_what_was_added(root):
    content = b"twelve bytes"
    assert registry.read("a.bin", root) == registry.Artifact(
        name="a.bin",
        md5=hashlib.md5(content).hexdigest(),
        sha256=hashlib.sha256(content).hexdigest(),
        size=12,
        **FACTS,
    )


def test_optional_facts_may_be_absent(root):
    (root / "b.bin").write_bytes(b"")
    registry.add(root / "b.bin", license="unknown", root=root)
    artifact = registry.read("b.bin", root)
    assert (artifact.size, artifact.source, artifact.member, artifact.url) == (0, None, None, None)


def test_adding_again_keeps_comments_unknown_fields_and_facts_not_given(root):
    path = root / "data" / "a.bin.dvc"
    text = path.read_text().replace("meta:", "meta:\n  # where it is from\n  seen: 2024").replace("MIT", "MIT # asked")
    path.write_text("# a header\n" + text)
    (root / "a.bin").write_bytes(b"new")
    registry.add(root / "a.bin", url="https://example.org/" + 20 * "long/" + "a.bin", root=root)
    written = path.read_text()
    assert all(kept in written for kept in ("# a header", "# where it is from", "seen: 2024", "MIT # asked"))
    artifact = registry.read("a.bin", root)
    assert (artifact.size, artifact.source, artifact.license) == (3, "pkg==1.0", "MIT")
    assert artifact.url.count("long/") == 20


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ({}, "--license"),
        ({"license": ""}, "license"),
        ({"license": "MIT", "source": "pkg==1.0"}, "source and member"),
        ({"license": "MIT", "source": "pkg", "member": "a"}, "source"),
        ({"license": "MIT", "source": "pkg==1.0", "member": "/etc/a"}, "member"),
        ({"license": "MIT", "url": "file:///etc/a"}, "url"),
    ],
)
def test_a_malformed_fact_is_refused_and_nothing_written(root, facts, complaint):
    (root / "b.bin").write_bytes(b"b")
    with pytest.raises(VceError, match=complaint):
        registry.add(root / "b.bin", **facts, root=root)
    assert registry.names(root) == ["a.bin"]


def test_adding_a_file_that_is_not_there(root):
    with pytest.raises(VceError, match=r"no\.bin: no such file"):
        registry.add(root / "no.bin", license="MIT", root=root)


@pytest.mark.parametrize("name", ["b.bin", "../a.bin", "a.bin.dvc", "", ".hidden"])
def test_an_unknown_name_lists_the_closest(root, name):
    with pytest.raises(VceError, match=r"no such artifact; .* closest are: a\.bin"):
        registry.read(name, root)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sha256: ", "sha256: 0"),
        ("sha256: ", "sha257: "),
        ("md5: ", "md5: g"),
        ("size: 12", "size: twelve"),
        ("size: 12", "size: -1"),
        ("size: 12", "size: true"),
        ("path: a.bin", "path: ../a.bin"),
        ("path: a.bin", "path: b.bin"),
        ("license: MIT", "license:"),
        ("license: MIT", "licence: MIT"),
        ("outs:", "- outs"),
        ("outs:\n-", "outs: []\nothers:\n-"),
        ("meta:", "meta: x\nothers:"),
    ],
)
def test_a_malformed_pointer_is_refused_with_its_name_and_the_fix(root, old, new):
    path = root / "data" / "a.bin.dvc"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(VceError, match=r"^data/a\.bin\.dvc: .*restore it from git"):
        registry.read("a.bin", root)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"just words", b"a: b: c"])
def test_a_pointer_that_is_no_pointer(root, content):
    (root / "data" / "a.bin.dvc").write_bytes(content)
    with pytest.raises(VceError, match=r"^data/a\.bin\.dvc: .*restore it from git"):
        registry.read("a.bin", root)


def test_dvc_takes_our_pointers_and_leaves_them_as_they_are(root):
    path = root / "data" / "a.bin.dvc"
    registry.add(root / "a.bin", url="https://example.org/" + 20 * "long/", root=root)
    path.write_text("# a header\n" + path.read_text())
    before = path.read_text()
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (root / "data" / "a.bin").write_bytes(b"twelve bytes")
    command = [sys.executable, "-m", "dvc", "commit", "--force", "--quiet", "data/a.bin.dvc"]
    subprocess.run(command, cwd=root, check=True)
    md5 = registry.read("a.bin", root).md5
    assert (root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).read_bytes() == b"twelve bytes"
    assert path.read_text() == before
