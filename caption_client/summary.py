"""What a run says at its end, on standard error: what was skipped, kept and failed, and why."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import PurePath

LISTED = 10  # names of a kind, where each has the same reason; failures are all listed
# Kinds, in the order in which they are told, after "3 of 9 pictures ".
SKIPPED = "skipped: they have a caption already (--skip-existing)"
KEPT = "kept another text; --force replaces it"
BESIDE = "do not carry it themselves, it is in an XMP file beside"
NOTHING = "skipped: they show nothing, and need no alternative text"
UNTAGGED = "got no tags: the model has none"
REVIEW = "should be looked at: the model is not sure of them"
FAILED = "failed"
KINDS = (SKIPPED, KEPT, BESIDE, NOTHING, UNTAGGED, REVIEW, FAILED)


class Summary:
    """Counts, and the names that are told; few of each kind but of failures."""

    def __init__(self, at_once: bool = False) -> None:
        """at_once: failures are told when they happen, and only counted at the end; for runs that have no end."""
        self.at_once = at_once
        self.captioned = 0
        self.unseen: list[str] = []  # folders and globs
        self.counts, self.others = Counter[str](), Counter[str]()  # by kind; by the suffix of what is no picture
        self._told: dict[str, list[str]] = {kind: [] for kind in KINDS}

    def not_looked_into(self, path: str, why: str) -> None:
        """A folder that cannot be read, a glob that matches nothing."""
        if not self.at_once:
            self.unseen.append(f"  {path}: {why}")
        elif (line := f"  {path}: {why}") not in self.unseen:  # once, however often it is looked
            self.unseen.append(line)
            say(f"not looked into: {path}: {why}")

    def no_picture(self, path: str) -> None:
        """A file in a folder that is no picture by its name."""
        self.others[PurePath(path).suffix.lower() or "no suffix"] += 1

    def add(self, kind: str, name: str, why: str = "") -> None:
        """A picture of one of `KINDS`."""
        self.counts[kind] += 1
        line = f"{name}: {why}" if why else name
        if self.at_once:
            if kind == FAILED:
                say(f"failed: {line}")
        elif kind == FAILED or len(self._told[kind]) < LISTED:
            self._told[kind].append(f"  {line}")

    @property
    def failed(self) -> bool:
        """Whether anything went wrong."""
        return bool(self.counts[FAILED] or self.unseen)

    def report(self, dry_run: bool = False) -> None:
        """Say it; nothing of one picture that went well."""
        skipped = self.counts[SKIPPED] + self.counts[NOTHING]
        total = self.captioned + self.counts[SKIPPED] + self.counts[FAILED]
        if self.unseen and not self.at_once:
            say("not looked into:", *self.unseen)
        if self.others:
            others = ", ".join(f"{count} {suffix}" for suffix, count in self.others.most_common(LISTED))
            say(f"left out, no pictures by their names: {others}")
        for kind in KINDS:
            if count := self.counts[kind]:
                lines = self._told[kind]
                more = [f"  and {count - len(lines)} more"] if 0 < len(lines) < count else []
                say(f"{count} of {total} pictures {kind}{':' if lines else ''}", *lines, *more)
        if total > 1 or any(self.counts.values()):
            done = self.captioned - self.counts[NOTHING]
            verb = "would be captioned" if dry_run else "captioned"
            say(f"{total} pictures: {done} {verb}, {skipped} skipped, {self.counts[FAILED]} failed")


def say(*lines: str) -> None:
    """The lines on standard error, the first after the command's name."""
    print(f"caption: {lines[0]}", *lines[1:], sep="\n", file=sys.stderr)
