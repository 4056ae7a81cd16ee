"""Where several workers share the tests, slow ones begin first (tests/conftest.py)."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SLOW, slow_first

TESTS = Path(__file__).parent


def items_of(*names: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(path=TESTS / name) for name in names]


@pytest.mark.parametrize("workers", [2, 3])
def test_each_worker_begins_with_slow_tests(workers):
    # red with all of them at the head of the list, or parts cut otherwise than `--dist worksteal` cuts them
    quick = [f"algorithms/test_{n}.py" for n in range(20)]
    items = items_of(*quick[:9], "run/test_kills.py", *quick[9:], *["run/test_resume.py"] * 2, "distributed/test_a.py")
    ordered, waiting = slow_first(items, workers), list(items)
    assert sorted(map(id, ordered)) == sorted(map(id, items))
    begun = []
    for worker in range(workers):
        part = ordered[len(ordered) - len(waiting) :][: len(waiting) // (workers - worker)]
        waiting = waiting[len(part) :]
        names = [item.path.relative_to(TESTS).as_posix() for item in part]
        slow = [name for name in names if name not in quick]
        assert names[: len(slow)] == slow  # nothing quick comes before
        begun.append(slow[0])
    assert begun == ["run/test_resume.py", "run/test_resume.py", "run/test_kills.py"][:workers]


def test_nothing_is_lost_where_all_are_slow():
    # red with parts of equal size, rounded down
    items = items_of(*["run/test_resume.py"] * 3, *["algorithms/test_flow.py"] * 2)
    assert sorted(map(id, slow_first(items, 2))) == sorted(map(id, items))


def test_the_slow_ones_are_there():
    # red with a name that was changed since
    assert all((TESTS / name).exists() for name in SLOW)
