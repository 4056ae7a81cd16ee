"""Tar shards: which of them a pattern names, and what is in one. Nothing in a shard is passed over without a word."""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from uae_lightning.data.images import MAX_BYTES, SUFFIXES, BadFile
from uae_lightning.usage import UsageError

Content = bytes | BadFile
MOST_PARTS = 64  # files of one sample; more that share the first part of a name are no parts of a sample


class Member(NamedTuple):
    stem: str  # with the folder, up to the last dot of the name
    suffix: str  # in lower case
    content: Content

    @property
    def first(self) -> str:
        """The stem up to the first dot of the name."""
        folder, slash, name = self.stem.rpartition("/")
        return folder + slash + name.partition(".")[0]


class Group(NamedTuple):
    """What belongs to one picture."""

    stem: str
    files: dict[str, Content]  # by suffix
    others: int  # pictures that are parts of the same sample, such as masks


# ---------------------------------------------------------------------------------------------------- names of shards


def shard_urls(paths: str | list[str]) -> list[str]:
    """Raises UsageError where there is none."""
    patterns = [url for path in ([paths] if isinstance(paths, str) else paths) for url in expanded(path)]
    urls: list[str] = []
    for pattern in patterns:
        local = "://" not in pattern and re.search(r"[*?]", pattern)
        urls += sorted(glob.glob(pattern)) if local else [pattern]
    if not urls or not all(map(is_tar, urls)):
        raise UsageError(f"{paths} names no .tar shards: correct the path in data.init_args")
    return urls


def expanded(pattern: str) -> list[str]:
    """`a{00..02}b{x,y}` -> a00bx, a00by, a01bx, ...; without braces the pattern itself."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        names = [str(number).zfill(len(span[1])) for number in range(int(span[1]), int(span[2]) + 1)]
    else:
        names = match[1].split(",")
    return [url for name in names for url in expanded(pattern[: match.start()] + name + pattern[match.end() :])]


def is_tar(url: str) -> bool:
    return url.split("?")[0].endswith((".tar", ".tar.gz", ".tgz"))


def shard_names(urls: list[str]) -> list[str]:
    """What keys call the shards: the file's name, or, where two have the same, all that is not common to the paths."""
    names = [PurePosixPath(url.split("?")[0]).name for url in urls]
    if len(set(names)) == len(set(urls)):
        return names
    common = len(os.path.commonprefix(urls).rpartition("/")[0])
    return [url[common:].removeprefix("/") for url in urls]


# ---------------------------------------------------------------------------------------------------- what is in one


def groups(file: IO[bytes]) -> Iterator[Group]:
    """The samples of a tar, compressed or not, that is read as a stream.

    WebDataset parts a name at its first dot: `0001.jpg`, `0001.txt` and `0001.mask.png` are one sample, of whose
    pictures the plain one counts. Names of one's own have dots as well (`IMG.2019.01.jpg`): pictures none of which is
    plain, or that have captions of their own, are samples each.

    Raises:
        tarfile.ReadError: the tar is damaged there, or cut.
    """
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=Header) as tar:
        for _, members in itertools.groupby(_members(tar), key=lambda member: member.first):
            waiting: list[Member] = []
            for member in members:
                waiting.append(member)
                if len(waiting) > MOST_PARTS:
                    yield from _parted([one for one in waiting if one.stem != member.stem])
                    waiting = [one for one in waiting if one.stem == member.stem]
            yield from _parted(waiting)
        while rest := tar.fileobj.read(tarfile.RECORDSIZE):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("there is more behind the mark of the end")


class Header(tarfile.TarInfo):
    """tarfile takes a damaged or missing header for the end of a tar; here that is a block of zeros alone."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"header at byte {tar.offset:,}: {error}") from error


def _members(tar: tarfile.TarFile) -> Iterator[Member]:
    """Pictures and captions."""
    for header in tar:
        tar.members = []  # else every header of the shard stays in memory
        folder, slash, name = header.name.rpartition("/")
        stem, _, suffix = name.rpartition(".")
        suffix = suffix.lower()
        if header.isdir() or not stem or stem.startswith(".") or suffix not in SUFFIXES | {"txt", "json"}:
            continue
        content = content_of(tar.extractfile(header), header.size) if header.isfile() else BadFile("not a file", "link")
        yield Member(folder + slash + stem, suffix, content)


def content_of(file: IO[bytes], size: int) -> Content:
    """The next `size` bytes."""
    if size > MAX_BYTES:
        return BadFile("too many bytes", f"{size:,}, the limit is {MAX_BYTES:,}")
    return file.read(size)


def _parted(members: list[Member]) -> Iterator[Group]:
    """Members whose names agree up to the first dot, as one sample or several."""
    files: dict[str, dict[str, Content]] = {}
    for stem, suffix, content in members:
        own = files.setdefault(stem, {})
        own[suffix] = BadFile("same name twice", f"{stem}.{suffix}") if suffix in own else content
    pictures = {stem: len(own.keys() & SUFFIXES) for stem, own in files.items() if own.keys() & SUFFIXES}
    main = next((stem for stem in (members[0].first, *pictures) if stem in pictures), members[0].stem)
    captioned = [stem for stem in pictures if files[stem].keys() & {"txt", "json"}]
    if len(pictures) > 1 and (main != members[0].first or set(captioned) - {main}):
        for stem, own in files.items():
            yield Group(stem, own, max(pictures.get(stem, 0) - 1, 0))
    else:
        texts = {suffix: content for own in files.values() for suffix, content in own.items() if suffix not in SUFFIXES}
        yield Group(main, texts | files[main], max(sum(pictures.values()) - 1, 0))
