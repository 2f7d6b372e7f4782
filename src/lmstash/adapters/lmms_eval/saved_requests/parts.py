"""Values that several ranks save in parts: which parts are of one run, and so may be put together."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """A run, as one of its ranks knows it.

    Attributes:
        name: What its ranks have in common, and no other run that goes on meanwhile.
        began: When this rank began (Unix seconds).
    """

    name: str
    began: float


def run_of_ranks(world_size: int, began: float) -> Run:
    """Return the run that this process is a rank of.

    Ranks of one machine have their parent in common (the launcher), those of several machines the address where they
    meet. Where nobody says how many of them are here, several machines have nothing in common: their parts stay apart.
    """
    told = os.environ.get
    here = told("LOCAL_WORLD_SIZE")
    if here is not None and here != str(world_size) and told("MASTER_PORT"):
        return Run(f"at {told('MASTER_ADDR')}:{told('MASTER_PORT')}", began)
    return Run(f"of {_machine()} {os.getppid()} {_parent_stat()[0]}", began)


def parent_began() -> float:
    """Return when the process began that started this rank and the others (Unix seconds)."""
    return _parent_stat()[1]


class Rounds:
    """Runs of who names none: a process that saves each part once has made a run. Threads may share it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._now: dict[Any, _Round] = {}

    def run(self, what: Any, number: int) -> Run:
        """Return the run that part `number` of `what` belongs to: another one, if this one has it already."""
        with self._lock:
            now = self._now.get(what)
            if now is None or number in now.numbers or now.pid != os.getpid():
                now = self._now[what] = _Round()
            now.numbers.add(number)
            return now.run


@dataclass
class _Round:
    run: Run = field(default_factory=lambda: Run(uuid.uuid4().hex, 0.0))
    pid: int = field(default_factory=os.getpid)
    numbers: set[int] = field(default_factory=set)


def stamp(run: Run) -> list[Any]:
    """Return what a part's head says of its run, as it is saved now."""
    return [run.name, run.began, time.time()]


def are_of_one_run(heads: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are all parts of one value, from one run and under one fingerprint.

    Launchers and addresses are used again. So each rank must have begun before any was done: a rank of the next run
    begins after that.
    """
    first = heads[0]
    if len(heads) != first["parts"]:
        return False
    if len(heads) == 1:
        return True
    same = all(head["parts"] == first["parts"] and head["fingerprint"] == first["fingerprint"] for head in heads)
    runs = [head.get("run") for head in heads]
    if not same or None in runs:  # earlier versions did not say
        return False
    names, begun, saved = zip(*runs, strict=True)
    return len(set(names)) == 1 and max(begun) <= min(saved)


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return f"{uuid.getnode():x}"


def _parent_stat() -> tuple[int, float]:
    """Return when this process's parent began: in ticks since the machine did, and in Unix seconds."""
    try:
        ticks = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19])
        booted = time.time() - float(Path("/proc/uptime").read_text().split()[0])
        return ticks, booted + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):  # not Linux
        return 0, time.time()
