"""The memory that is left, where a container or a job may use a part of the machine."""

from __future__ import annotations

from pathlib import Path

from logotrain.plan.host import free_bytes

_GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


MACHINE = {"proc/meminfo": f"MemTotal: {2 * _GIB >> 10} kB\nMemAvailable: {_GIB >> 10} kB\n"}


def group(folder: str, *, most: str, used: int, files: int = 0) -> dict[str, str]:
    return {
        f"sys/fs/cgroup/{folder}/memory.max": f"{most}\n",
        f"sys/fs/cgroup/{folder}/memory.current": f"{used}\n",
        f"sys/fs/cgroup/{folder}/memory.stat": f"anon 7\ninactive_file {files}\nactive_file 100\n",
    }


def test_a_machine_without_limits_has_what_linux_says(tmp_path: Path) -> None:
    assert free_bytes(write(tmp_path, MACHINE)) == _GIB
    assert free_bytes(write(tmp_path, {"proc/self/cgroup": "0::/\n"})) == _GIB
    job = {"proc/self/cgroup": "0::/slurm/job\n", **group("slurm/job", most="max", used=5)}
    assert free_bytes(write(tmp_path, job)) == _GIB


def test_the_tightest_of_a_job_s_limits_counts(tmp_path: Path) -> None:
    write(tmp_path, {**MACHINE, "proc/self/cgroup": "0::/slurm/job/step\n"})
    write(tmp_path, group("slurm/job/step", most="900000", used=1000))
    write(tmp_path, group("slurm/job", most="500000", used=250000, files=50000))
    write(tmp_path, group("other", most="10", used=0))
    assert free_bytes(tmp_path) == 500000 - 250000 + 50000 + 100
    write(tmp_path, group("slurm/job/step", most="1000", used=900000))
    assert free_bytes(tmp_path) == 0


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    write(tmp_path, {**MACHINE, "proc/self/cgroup": "0::/kubepods/pod7\n", **group("", most="4096", used=96)})
    assert free_bytes(tmp_path) == 4100


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    write(tmp_path, {**MACHINE, "proc/self/cgroup": "9:cpu,cpuacct:/a\n4:memory:/a\n"})
    above = "sys/fs/cgroup/memory"
    write(
        tmp_path,
        {
            f"{above}/a/memory.limit_in_bytes": "5000\n",
            f"{above}/a/memory.usage_in_bytes": "4000\n",
            f"{above}/a/memory.stat": "active_file 1\ntotal_inactive_file 300\ntotal_active_file 20\n",
        },
    )
    assert free_bytes(tmp_path) == 1320
