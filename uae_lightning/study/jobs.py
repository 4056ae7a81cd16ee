"""Jobs as processes beside each other: what is done is skipped, what fails is shown, what was killed goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uae_lightning.files import write_json
from uae_lightning.usage import UsageError

HEARTBEAT = 60.0  # seconds between two lines about what is running
LAST_LINES = 15  # of the log of a job that failed


@dataclass(frozen=True, eq=False)
class Job:
    """One process.

    Args:
        name: also that of its log and its record.
        needs: the job that must be done before it, if any.
        seconds: a rough estimate of what it takes on one core.
        settings: everything that decides its outcome, as JSON; where it changes, an earlier result does not count.
        result: the file that exists once it is done.
        command: called when the job starts.
        clear: removes what an earlier try has left.
        outcome: what came out of it in a few words, called when it is done.
    """

    name: str
    needs: str | None
    seconds: float
    settings: dict[str, Any]
    result: Path
    command: Callable[[], list[str]]
    clear: Callable[[], None]
    outcome: Callable[[], str] = lambda: ""

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Desk:
    """Jobs with a folder for their logs, NAME.log, and records, NAME.json: settings, and seconds once done."""

    folder: Path
    jobs: list[Job]

    def log(self, job: Job) -> Path:
        return self.folder / f"{job.name.replace('/', '.')}.log"

    def record(self, job: Job) -> dict[str, Any]:
        path = self.log(job).with_suffix(".json")
        return json.loads(path.read_text()) if path.exists() else {}

    def note(self, job: Job, **facts: Any) -> None:
        write_json(self.log(job).with_suffix(".json"), {"digest": job.digest, "settings": job.settings} | facts)

    def done(self, job: Job) -> bool:
        return job.result.exists() and self.record(job).get("digest") == job.digest

    def wall_minutes(self) -> float:
        """In which a job that is done was running (of an interrupted one: its last try), by the time of the records."""
        done = [(self.log(job).with_suffix(".json"), self.record(job)) for job in self.jobs if self.done(job)]
        ends = [(path.stat().st_mtime, record.get("seconds", 0.0)) for path, record in done]
        seconds, until = 0.0, 0.0
        for began, ended in sorted((ended - taken, ended) for ended, taken in ends):
            seconds, until = seconds + max(0.0, ended - max(began, until)), max(ended, until)
        return seconds / 60

    def stale(self) -> list[Job]:
        """Jobs of which there is something that other settings have made, or nobody knows which."""
        return [job for job in self.jobs if not self.done(job) and (job.result.exists() or self._other_settings(job))]

    def _other_settings(self, job: Job) -> bool:
        return self.record(job).get("digest", job.digest) != job.digest

    @contextmanager
    def alone(self) -> Iterator[int]:
        """Holds the folder's lock. Jobs inherit it: none that outlived its study shares a folder with the next.

        Raises:
            UsageError: somebody else has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(f"{self.folder.parent} is in use by another `uae study`, or jobs it left") from error
            yield file.fileno()


class Runner:
    """Runs the jobs of a desk that are not done, `slots` beside each other, those with most to come first.

    A job that starts while nothing else could run gets all cores.
    """

    def __init__(self, desk: Desk, slots: int, cores: int) -> None:
        self.desk, self.slots, self.cores = desk, slots, cores
        self.waiting = [job for job in desk.jobs if not desk.done(job)]
        self.running: dict[Job, tuple[subprocess.Popen, int, float]] = {}  # process, threads, when it began
        self.failed: list[Job] = []
        self.began = self.spoke = time.monotonic()
        self.estimated, self.taken = 0.0, 0.0  # core-seconds of the jobs that were done in this call

    def run(self) -> list[Job]:
        """Returns the jobs that failed; what needs them is not run."""
        if done := len(self.desk.jobs) - len(self.waiting):
            print(f"{done} of {len(self.desk.jobs)} jobs are done already", flush=True)
        with self.desk.alone() as lock:
            try:
                while (ready := self.ready()) or self.running:
                    for job in ready[: self.slots - len(self.running)]:
                        beside = min(self.slots, len(self.running) + len(ready))
                        self.start(job, max(1, self.cores // beside), lock)
                    time.sleep(0.2)
                    for job in [job for job, (process, *_) in self.running.items() if process.poll() is not None]:
                        self.finish(job)
                    self.beat()
            finally:  # after a signal, too: jobs end with their study
                for process, *_ in self.running.values():
                    process.terminate()
                for process, *_ in self.running.values():
                    process.wait()
        for job in self.waiting:
            print(f"not run: {job.name}, which needs {job.needs}")
        return self.failed

    def ready(self) -> list[Job]:
        blocked = {job.name for job in (*self.waiting, *self.running, *self.failed)}
        return sorted((job for job in self.waiting if job.needs not in blocked), key=lambda job: -self.to_come(job))

    def to_come(self, job: Job) -> float:
        """Seconds of this job and the longest line of jobs that wait for it."""
        return job.seconds + max((self.to_come(later) for later in self.waiting if later.needs == job.name), default=0)

    def start(self, job: Job, threads: int, lock: int) -> None:
        self.waiting.remove(job)
        self.desk.note(job)
        command, environment = job.command(), os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        with self.desk.log(job).open("a") as log:
            print(f"\n$ OMP_NUM_THREADS={threads} {' '.join(command)}", file=log, flush=True)
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=(lock,)
            )
        self.running[job] = process, threads, time.monotonic()
        print(f"start {job.name} ({threads} thread{'s' * (threads > 1)})", flush=True)

    def finish(self, job: Job) -> None:
        process, threads, began = self.running.pop(job)
        seconds = time.monotonic() - began
        if process.returncode or not job.result.exists():
            self.failed.append(job)
            lines = self.desk.log(job).read_text(errors="replace").splitlines()[-LAST_LINES:]
            print(f"FAILED {job.name} (exit code {process.returncode}), the end of {self.desk.log(job)}:")
            print("\n".join(f"  | {line}" for line in lines), flush=True)
            return
        self.desk.note(job, seconds=round(seconds, 1), threads=threads)
        self.estimated, self.taken = self.estimated + job.seconds, self.taken + seconds * threads
        done = len(self.desk.jobs) - len(self.waiting) - len(self.running) - len(self.failed)
        print(
            f"done {job.name} in {seconds / 60:.1f} min{job.outcome()}: {done} of {len(self.desk.jobs)} jobs, "
            f"{(time.monotonic() - self.began) / 60:.0f} min so far, about {self.minutes_left():.0f} min left",
            flush=True,
        )

    def minutes_left(self) -> float:
        """From the jobs' estimates, and how far those that are done were off them."""
        scale, now = self.taken / self.estimated if self.estimated else 1.0, time.monotonic()
        rest = sum(scale * job.seconds for job in self.waiting)
        rest += sum(max(0.0, scale * job.seconds - (now - t) * n) for job, (_, n, t) in self.running.items())
        return rest / self.slots / 60

    def beat(self) -> None:
        if time.monotonic() - self.spoke >= HEARTBEAT:
            self.spoke = time.monotonic()
            for job, (_, _, began) in self.running.items():
                last = " ".join(self.desk.log(job).read_text(errors="replace").split()[-12:])[-80:]
                print(f"  {job.name}, {(self.spoke - began) / 60:.1f} min: {last}", flush=True)
