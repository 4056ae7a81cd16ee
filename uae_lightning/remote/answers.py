"""What servers have answered, so that nobody is asked, or paid, twice: in memory, and on disk where there is a folder.

On disk it is a table of sqlite3, which comes with Python, is safe under several processes, and holds JSON: reading it
runs nothing (diskcache unpickles). It holds digests and answers; no key, no URL, no question and no picture.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from uae_lightning.usage import UsageError

FILE = "answers.sqlite"
OURS = 0x75616531  # application_id of the file
PATIENCE = 60.0  # seconds that another process may be writing
Known = dict[bytes, Any]


class Answers:
    """Answers by the content of what was asked.

    Args:
        judge: whose they are, as JSON: all that decides an answer beside the content, such as model and rubric.
        size: how many are kept in memory; the oldest are forgotten.
        folder: for all of them, of this process and others; None keeps them in memory alone.
        fits: whether what was read from disk is an answer as this judge gives it; what is not, is asked for again.
    """

    def __init__(self, judge: list[Any], size: int, folder: str | None, fits: Callable[[Any], bool]) -> None:
        self.judge, self.size, self.fits = judge, size, fits
        self.file = None if folder is None else Path(folder).expanduser() / FILE
        self.memory: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, content: Any) -> bytes:
        """Of content that JSON can hold."""
        return hashlib.blake2b(json.dumps([self.judge, content]).encode(), digest_size=16).digest()

    def check(self) -> None:
        """Raises UsageError where there is a folder and it cannot be used; nothing is asked."""
        if self.file is not None:
            with self._table():
                pass

    def known(self, keys: list[bytes]) -> Known:
        """Answers to those that have one."""
        with self._lock:
            found = {key: self.memory[key] for key in keys if key in self.memory}
        missing = [key for key in keys if key not in found]
        found |= self._read(missing) if missing and self.file is not None else {}
        self._memorise(found)
        return found

    def keep(self, answers: Mapping[bytes, Any]) -> None:
        """As soon as they are there: a process that is killed has paid for no more than what was under way."""
        self._memorise(answers)
        if self.file is not None and answers:
            with self._table() as table, table:
                rows = [(key, json.dumps(answer, allow_nan=False)) for key, answer in answers.items()]
                table.executemany("insert or replace into answers values (?, ?)", rows)

    def _memorise(self, answers: Mapping[bytes, Any]) -> None:
        with self._lock:
            for key, answer in answers.items():
                self.memory[key] = answer
                self.memory.move_to_end(key)
            while len(self.memory) > self.size:
                self.memory.popitem(last=False)

    def _read(self, keys: list[bytes]) -> Known:
        found = {}
        with self._table() as table:
            for key in keys:
                for (text,) in table.execute("select answer from answers where digest = ?", (key,)):
                    try:
                        answer = json.loads(text)
                    except (TypeError, ValueError):
                        continue
                    if self.fits(answer):
                        found[key] = answer
        return found

    @contextmanager
    def _table(self) -> Iterator[sqlite3.Connection]:
        """Opened for each use, so that threads and forked processes share nothing; made where there is none."""
        assert self.file is not None
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.file, timeout=PATIENCE)) as connection:
                if identity(connection) != OURS:
                    self._make(connection)
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise UsageError(
                f"cache_folder: {self.file} cannot be used ({error}): name another folder; a damaged file can be "
                "deleted, its answers are then asked for again"
            ) from error

    def _make(self, connection: sqlite3.Connection) -> None:
        """Raises sqlite3.DatabaseError where the file is somebody else's."""
        connection.execute("begin immediate")  # another process may be making it
        if identity(connection) != OURS:
            if connection.execute("select count(*) from sqlite_master").fetchone() != (0,):
                raise sqlite3.DatabaseError("it is a database of something else")
            connection.execute("create table answers (digest blob primary key, answer text) without rowid")
            connection.execute(f"pragma application_id = {OURS}")
        connection.commit()


def identity(connection: sqlite3.Connection) -> int:
    (found,) = connection.execute("pragma application_id").fetchone()
    return found
