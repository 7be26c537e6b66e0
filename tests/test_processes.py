"""What a process may use of the machine."""

import pytest

from evenlens.processes import memory


def machine(root, groups, limits):
    """Lay out what Linux says of memory: 8 MiB free, and limits by the group's file."""
    for name, content in {
        "proc/meminfo": "MemTotal: 16384 kB\nMemFree: 512 kB\nMemAvailable: 8192 kB\n",
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{name}": f"{limit}\n" for name, limit in limits.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(("groups", "limits", "mib"), [
    ("0::/\n", {}, 8),
    ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": 5 << 20, "memory.max": 6 << 20}, 5),
    ("0::/\n", {"memory.max": 3 << 20}, 3),
    ("0::/job\n", {"job/memory.max": 64 << 20}, 8),
    ("5:cpu:/x\n4:memory:/a/b\n0::/\n", {"memory/a/b/memory.limit_in_bytes": 2 << 20, "cpu/x/memory.max": 9}, 2),
    ("4:memory:/docker/f00\n", {"memory/memory.limit_in_bytes": 4 << 20}, 4),
], ids=["no limit", "the group above", "a container", "more than there is", "version one", "at the top"])  # fmt: skip
def test_memory_is_what_is_free_and_what_every_control_group_allows(tmp_path, groups, limits, mib):
    assert memory(machine(tmp_path, groups, limits)) == mib << 20


def test_a_kernel_without_control_groups_has_the_memory_of_the_machine(tmp_path):
    root = machine(tmp_path, "", {})
    (root / "proc/self/cgroup").unlink()
    assert memory(root) == 8 << 20
    assert memory() > 1 << 20
