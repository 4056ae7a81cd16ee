"""What the C allocator keeps, and when."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
MEGABYTES = """
import torch
from pathlib import Path
from uae_lightning.run.memory import freed_memory_kept

def megabytes():
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * 4096 / 1e6
"""
KEPT = """
def left():
    before = megabytes()
    [torch.ones(16_000_000) for _ in range(4)]  # of 64 MB each: more than glibc would keep by itself
    return megabytes() - before

before = megabytes()
outside = left()
with freed_memory_kept():
    inside = left()
print(outside, inside, megabytes() - before)
"""
HOLES = """
torch.ones(7_500_000)  # once a block of 30 MB was freed, glibc takes smaller ones from where holes can be
before = megabytes()
made = [torch.ones(250_000) for _ in range(200)]  # of a megabyte each
some = made[::20]
del made
with freed_memory_kept():
    print(megabytes() - before)
"""


def printed(script: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", MEGABYTES + script], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def test_freed_blocks_are_kept_inside_alone():
    # red without either threshold, or without malloc_trim at the end
    outside, inside, after = printed(KEPT)
    assert outside < 20 and inside > 150 and after < 20


def test_what_loading_has_freed_is_given_back_before_the_first_step():
    # red without malloc_trim: what stays lies among what was freed
    (left,) = printed(HOLES)
    assert left < 40
