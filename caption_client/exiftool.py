"""One ExifTool for a whole run: it knows what cameras and programs make of pictures' metadata.

It is only given links to files, and copies of them, in a folder of our own under names of ours.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Tags = dict[str, Any]  # by group and name, such as XMP-dc:Description; list-like ones are lists or their one value

METADATA = ("-all", "--System:all", "--File:all", "--Composite:all")  # what is not of the file or worked out


class ExifToolError(Exception):
    """ExifTool is missing, or cannot do this with the file."""


class ExifTool:
    """Reads tags, and makes changed copies; to be closed. Raises `ExifToolError` where it is not installed."""

    def __init__(self) -> None:
        program = shutil.which("exiftool")
        if program is None:
            raise ExifToolError("XMP needs ExifTool (Debian: libimage-exiftool-perl); or use --write-alt sidecar")
        self._folder = tempfile.TemporaryDirectory(prefix="caption-xmp-")
        self._process = subprocess.Popen(
            [program, "-config", "", "-stay_open", "True", "-@", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is ours to answer, once the picture at hand is whole
        )

    def read(self, path: Path, names: Iterable[str] = METADATA, options: Iterable[str] = ()) -> Tags:
        """The tags of a file: those that `names` name, or all of its metadata."""
        name = self._link(path)
        said = self._do("-json", "-G1", "-a", "-q", "-struct", *options, *names, "-Warning", name)
        try:
            [tags] = json.loads(said or "[{}]")
        except ValueError as error:
            raise ExifToolError(f"ExifTool cannot read the metadata: {said.strip():.100}") from error
        if re.search("(Empty|Invalid) XMP|XMP format", warning := str(tags.pop("ExifTool:Warning", ""))):
            raise ExifToolError(f"its XMP is damaged ({warning})")
        return {name: value for name, value in tags.items() if name != "SourceFile"}

    def changed(self, path: Path | None, suffix: str, options: Iterable[str]) -> Path:
        """A copy of the file, or a new one, after `options` (-TAG=VALUE ...) changed it; good until the next call."""
        made = Path(self._folder.name, f"out{suffix}")
        made.unlink(missing_ok=True)
        if path is not None:
            shutil.copyfile(path, made)
        # In place: some versions have formats (WebP) that they can change but not write under another name.
        said = self._do("-overwrite_original", *options, made.name)
        if not made.exists() or not re.search("1 .*files? (created|updated|unchanged)", said):
            raise ExifToolError("ExifTool cannot write this file's metadata")
        return made

    def _link(self, path: Path) -> str:
        """The name under which ExifTool sees the file: nothing in it can be taken for an option."""
        if path.parent == Path(self._folder.name):
            return path.name
        suffix = path.suffix.lower()  # which tells kinds of raw files apart
        link = Path(self._folder.name, "in" + (suffix if re.fullmatch(r"\.[a-z0-9]{1,5}", suffix) else ""))
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
        return link.name

    def _do(self, *arguments: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert not any("\n" in argument for argument in arguments)  # each line is an argument
        try:
            self._process.stdin.write("\n".join([*arguments, "-execute1\n"]))
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ExifToolError("ExifTool has ended") from error
        lines: list[str] = []
        for line in self._process.stdout:
            if line.rstrip() == "{ready1}":
                return "".join(lines)
            lines.append(line)
        raise ExifToolError("ExifTool has ended")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()
