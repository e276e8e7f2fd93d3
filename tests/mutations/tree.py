"""A copy of the project in which one line at a time is made wrong and put right again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from .mutants import Mutant

BUILT = "amkd_fast/_*.so"


class Unbuildable(Exception):
    """The compiler's last words on a mutant: the list is wrong, nothing was caught."""


class Tree:
    """The copy at ``root``; ``through`` is put before the command of a build."""

    def __init__(self, source: Path, root: Path, through: list[str]) -> None:
        self.root, self._through = root, through
        self._kept = root.with_name(root.name + ".pristine")
        self._copy(source)

    def _copy(self, source: Path) -> None:
        """The files that git knows or does not ignore; a copy from an earlier call is brought up to date."""
        command = ["git", "-C", str(source), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        wanted = {name for name in names if name and (source / name).is_file()}
        for path in list(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.is_file() and name not in wanted and not name.startswith("build/") and not path.match(BUILT):
                path.unlink()
        if not any(self.root.glob(BUILT)):  # does for all faults but those in what it is built from
            wanted |= {str(path.relative_to(source)) for path in source.glob(BUILT)}
        for name in wanted:
            to = self.root / name
            if not to.is_file() or to.read_bytes() != (source / name).read_bytes():
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / name, to)

    def build(self) -> None:
        """Let ninja compile what has changed."""
        self._make("setup.py", "-q", "build_ext", "--inplace")

    def emulate(self, modes: list[str]) -> None:
        """The builds of the emulator; of a mutant, its tests call for them."""
        for mode in modes:
            self._make("-m", "tests.emulator", "build", *([f"--{mode}"] if mode != "1" else []))

    def _make(self, *arguments: str) -> None:
        command = [*self._through, sys.executable, *arguments]
        built = subprocess.run(command, cwd=self.root, env=self.environment(), capture_output=True, text=True)
        if built.returncode != 0:
            raise Unbuildable((built.stdout + built.stderr)[-2000:])

    def keep(self) -> None:
        """Remember what the pristine tree was built into."""
        shutil.rmtree(self._kept, ignore_errors=True)
        shutil.copytree(self.root / "build", self._kept / "build")
        for binary in self.root.glob(BUILT):
            shutil.copy2(binary, self._kept)

    @contextmanager
    def mutated(self, mutant: Mutant):
        """The tree with a fault in it. Files come back with their times, so that nothing is compiled twice."""
        path = self.root / mutant.file
        before, times = path.read_text(), path.stat()
        if before.count(mutant.old) != 1:
            raise Unbuildable(f"{mutant.file} holds {mutant.old!r} {before.count(mutant.old)} times: must be once")
        try:
            path.write_text(before.replace(mutant.old, mutant.new))
            if mutant.kind == "cpu":
                self.build()
            yield
        finally:
            path.write_text(before)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            if mutant.kind in ("cpu", "cuda"):
                shutil.rmtree(self.root / "build")
                shutil.copytree(self._kept / "build", self.root / "build")
                for binary in self._kept.glob("_*.so"):
                    shutil.copy2(binary, self.root / "amkd_fast")
            shutil.rmtree(self.root / ".hypothesis", ignore_errors=True)  # its failing examples

    def environment(self) -> dict[str, str]:
        """Of builds and tests. Bytecode is not kept: it is told from a mutant's by the second."""
        own = {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
        return {"MAX_JOBS": "1", **os.environ, **own}
