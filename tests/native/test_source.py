"""Fetching, copying and patching the whisper.cpp tree, on a tree of four files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from native import source
from native.source import BuildError, prepare

FIXED = 1_000_000_000  # an mtime of long ago

PATCH = """\
Why it is needed.

diff --git a/src/whisper.cpp b/src/whisper.cpp
--- a/src/whisper.cpp
+++ b/src/whisper.cpp
@@ -1,3 +1,3 @@
 one
-two
+TWO
 three
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    tree = tmp_path / "checkout"
    files = {
        "CMakeLists.txt": 'project("whisper.cpp" C CXX)\nproject("whisper.cpp" VERSION 1.9.9)\n',
        "include/whisper.h": "header\n",
        "ggml/CMakeLists.txt": "ggml\n",
        "src/whisper.cpp": "one\ntwo\nthree\n",
        "models/ggml-large.bin": "gigabytes\n",
    }
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
        os.utime(tree / name, (FIXED, FIXED))
    return tree


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    folder = tmp_path / "patches"
    folder.mkdir()
    (folder / "0001-shout.patch").write_text(PATCH)
    return folder


def contents(tree: Path) -> dict[str, tuple[bytes, float]]:
    files = [path for path in tree.rglob("*") if path.is_file()]
    return {str(path.relative_to(tree)): (path.read_bytes(), path.stat().st_mtime) for path in files}


def test_a_checkout_is_copied_and_patched_and_left_alone(tmp_path: Path, checkout: Path, patches: Path) -> None:
    before = contents(checkout)
    built = prepare(tmp_path / "build", patches, str(checkout))
    copy = tmp_path / "build" / "source"

    assert (copy / "src/whisper.cpp").read_text() == "one\nTWO\nthree\n"
    assert (copy / "src/whisper.cpp").stat().st_mtime > FIXED, "ninja would not see that it changed"
    assert not (copy / "models").exists()
    assert (built.whisper_version, built.origin, built.sha256) == ("1.9.9", str(checkout), None)
    assert built.patches == ["0001-shout.patch"]
    assert contents(checkout) == before


def test_the_environment_names_the_checkout(
    tmp_path: Path, checkout: Path, patches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_CPP_SRC", str(checkout))
    assert prepare(tmp_path / "build", patches).origin == str(checkout)


def test_only_what_changed_is_replaced(tmp_path: Path, checkout: Path, patches: Path) -> None:
    build = tmp_path / "build"
    first = prepare(build, patches, str(checkout))
    for path in (build / "source").rglob("*"):
        os.utime(path, (FIXED, FIXED))
    unchanged = contents(build / "source")
    assert prepare(build, patches, str(checkout)) == first
    assert contents(build / "source") == unchanged

    (checkout / "include/whisper.h").write_text("another header\n")
    (checkout / "ggml/new.c").write_text("new\n")
    second = prepare(build, patches, str(checkout))
    changed = {name for name, value in contents(build / "source").items() if unchanged.get(name) != value}
    assert second.key != first.key
    assert changed == {"include/whisper.h", "ggml/new.c"}

    (checkout / "ggml/new.c").unlink()
    prepare(build, patches, str(checkout))
    assert not (build / "source/ggml/new.c").exists()


def test_a_patch_that_does_not_fit_names_itself(tmp_path: Path, checkout: Path, patches: Path) -> None:
    build = tmp_path / "build"
    prepare(build, patches, str(checkout))
    (checkout / "src/whisper.cpp").write_text("quite\nanother\nfile\n")
    with pytest.raises(BuildError, match=r"0001-shout\.patch does not fit this whisper\.cpp: .*src/whisper\.cpp"):
        prepare(build, patches, str(checkout))
    assert (build / "source/src/whisper.cpp").read_text() == "one\nTWO\nthree\n", "the last good tree is lost"


def test_a_patch_that_is_there_already_is_fine(tmp_path: Path, checkout: Path, patches: Path) -> None:
    (checkout / "src/whisper.cpp").write_text("one\nTWO\nthree\n")
    prepare(tmp_path / "build", patches, str(checkout))
    assert (tmp_path / "build/source/src/whisper.cpp").read_text() == "one\nTWO\nthree\n"


def test_patches_apply_inside_a_repository_that_ignores_the_build(
    tmp_path: Path, checkout: Path, patches: Path
) -> None:
    (tmp_path / ".gitignore").write_text("/build/\n")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    prepare(tmp_path / "build", patches, str(checkout))
    assert (tmp_path / "build/source/src/whisper.cpp").read_text() == "one\nTWO\nthree\n"


@pytest.mark.parametrize(("make", "says"), [(False, "no such directory"), (True, "not a whisper.cpp tree")])
def test_a_wrong_checkout_is_one_clear_line(tmp_path: Path, patches: Path, make: bool, says: str) -> None:
    wrong = tmp_path / "wrong"
    if make:
        wrong.mkdir()
    with pytest.raises(BuildError, match=f"WHISPER_CPP_SRC={wrong}: {says}") as caught:
        prepare(tmp_path / "build", patches, str(wrong))
    assert "\n" not in str(caught.value)


def test_a_damaged_download_stops_and_is_removed(tmp_path: Path, patches: Path) -> None:
    pin = source.read_pin()
    archive = tmp_path / "build/download" / f"{pin.name}-{pin.version}.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"damaged")
    with pytest.raises(BuildError, match=f"{archive.name}: SHA-256 is .* removed it"):
        prepare(tmp_path / "build", patches, checkout="")
    assert not archive.exists()
    assert not (tmp_path / "build/source").exists()


def test_pip_is_told_the_checksum(tmp_path: Path, patches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged archive must not be unpacked, nor its setup.py run, by pip."""
    pin = source.read_pin()
    forged = tmp_path / "index" / f"{pin.name}-{pin.version}.tar.gz"
    forged.parent.mkdir()
    forged.write_bytes(b"forged")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(forged.parent))
    with pytest.raises(BuildError, match=r"SHA-256 is not that in native/source\.json; discarded it"):
        prepare(tmp_path / "build", patches, checkout="")
    assert list((tmp_path / "build/download").iterdir()) == []


def test_our_patches_are_applied_and_say_why() -> None:
    ours = sorted(source.PATCHES.glob("*.patch"))
    tree = source.BUILD / "source"
    assert ours
    assert source.patches_are_applied(ours, tree)
    for patch in ours:
        assert "Upstream status:" in patch.read_text().partition("diff --git")[0], patch.name


def test_a_tree_that_lacks_the_last_patch_is_told(tmp_path: Path) -> None:
    first, second = tmp_path / "1.patch", tmp_path / "2.patch"
    first.write_text("--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-one\n+two\n")
    second.write_text("--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-two\n+three\n")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.txt").write_text("one\n")
    for patch in (first, second):
        assert not source.patches_are_applied([first, second], tree)
        source.apply_patch(patch, tree)
    assert source.patches_are_applied([first, second], tree)
