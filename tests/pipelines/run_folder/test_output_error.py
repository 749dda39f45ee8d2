"""Outputs that are full, read-only, away or removed: one sentence, nothing half-written, and the run can go on."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from labelmill.operators.applying.patience import Limits
from labelmill.pipelines.cli import app
from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.run import Options, run
from labelmill.pipelines.run_folder import store as store_module
from labelmill.pipelines.run_folder.output_error import OutputError
from labelmill.pipelines.run_folder.store import TEMPORARY, Store
from tests.drawing import folder_of_images

IMAGES = 12


def go(output: str = "out/run", options: Options | None = None, **brightness: Any) -> dict[str, Any]:
    document = {
        "name": "toy",
        "source": {"folder": "data"},
        "output": output,
        "shard_size": 4,
        "steps": [{"tests.toys:Brightness": brightness}, {"tests.toys:Threshold": {"at_least": 60.0}}],
        "export": {"coco": {}},
    }
    Path("p.yaml").write_text(yaml.safe_dump(document))
    return run(load_pipeline("p.yaml"), options or Options(inline=True), TerminalReporter())


def results(folder: str) -> dict[str, bytes]:
    """The files that are results, by path."""
    found = [path for part in ("steps", "shards", "exports") for path in Path(folder, part).rglob("*")]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(found)
        if path.is_file() and path.suffix != ".md" and path.name != "coco.export.json"
    }


def half_written(folder: str) -> list[Path]:
    return list(Path(folder).rglob(f"{TEMPORARY}*"))


@pytest.fixture(autouse=True)
def data() -> Path:
    return folder_of_images(Path("data"), IMAGES)


@pytest.fixture
def undisturbed() -> dict[str, bytes]:
    go("undisturbed")
    return results("undisturbed")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk, where the machine lets us."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=False).returncode:
            pytest.skip("this machine lets nobody mount a disk")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", str(folder)], check=False, stderr=subprocess.DEVNULL)


def test_a_disk_that_is_full_at_any_write(monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]) -> None:
    real, calls, full_at = os.fsync, 0, 0

    def fsync(file: int) -> None:
        nonlocal calls
        calls += 1
        if full_at and calls >= full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    go("counted")
    writes = calls
    assert writes >= 3 + 3 + 3 + 4
    for number in range(1, writes + 1):
        shutil.rmtree("out", ignore_errors=True)
        calls, full_at = 0, number
        with pytest.raises(
            OutputError, match=r"no space is left for .*out/run.*; free some: .* run the same command"
        ) as e:
            go()
        assert "\n" not in str(e.value)
        assert half_written("out") == []
        full_at = 0
        if number % 4 == 0:
            go()
            assert results("out/run") == undisturbed


@pytest.mark.parametrize("where", ["inline", "local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_disk_that_fills_up(disk: Callable[[str], Path], where: str, undisturbed: dict[str, bytes]) -> None:
    output = disk("60k")
    with pytest.raises(OutputError, match="no space is left for"):
        go(f"{output}/run", Options(**{where: True}, workers=2))
    assert half_written(str(output)) == []
    subprocess.run(["mount", "-o", "remount,size=100M", str(output)], check=True)
    assert go(f"{output}/run")["outcome"]["kept"] > 0
    assert results(f"{output}/run") == undisturbed


def test_a_read_only_output(disk: Callable[[str], Path], undisturbed: dict[str, bytes]) -> None:
    output = disk("100M")
    remount = ["mount", "-o", "remount,ro", str(output)]
    subprocess.run(remount, check=True)
    with pytest.raises(OutputError, match=r"cannot be written: Read-only file system; make it writable, or choose"):
        go(f"{output}/run")
    subprocess.run([*remount[:2], "remount,rw", str(output)], check=True)
    go(f"{output}/run")
    assert results(f"{output}/run") == undisturbed
    subprocess.run(remount, check=True)
    with pytest.raises(OutputError, match="cannot be written: Read-only file system"):
        go(f"{output}/run", scale=2.0)


def test_an_output_below_a_file() -> None:
    Path("out").write_text("not a folder")
    with pytest.raises(OutputError, match="cannot be"):
        go()


@pytest.mark.parametrize("export", [False, True])
def test_an_output_that_is_removed_in_the_middle(monkeypatch: pytest.MonkeyPatch, export: bool) -> None:
    write = Store.write
    last = "decisions.parquet" if export else "00001.parquet"

    def then_remove(self: Store, name: str, data: bytes) -> None:
        write(self, name, data)
        if name.startswith("steps/" if not export else "") and name.endswith(last):
            shutil.rmtree("out/run", ignore_errors=True)

    monkeypatch.setattr(Store, "write", then_remove)
    with pytest.raises(OutputError, match=r"out/run was removed or unmounted while the run was at work; mount it"):
        go()
    assert not Path("out/run/steps").exists(), "what would be no run and not empty is not made again"
    monkeypatch.setattr(Store, "write", write)
    assert go()["images"] == IMAGES


def test_a_store_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(store_module, "PATIENCE", Limits(seconds=0))
    started = time.monotonic()
    with pytest.raises(
        OutputError, match=r"the output s3://bucket/run cannot be reached: .*; what was finished is kept"
    ):
        go("s3://bucket/run")
    assert time.monotonic() - started < 30


def test_the_command_ends_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    go()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    ended = CliRunner().invoke(app, ["run", "p.yaml", "--inline", "--set", "brightness.scale=3"])
    assert ended.exit_code == 1
    assert "Traceback" not in ended.output
    (line,) = [line for line in ended.stderr.splitlines() if "error" in line]
    assert "no space is left for the output" in line
