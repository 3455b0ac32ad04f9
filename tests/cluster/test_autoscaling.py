"""A cluster that grows by itself: from no worker to those that `--wait` asks for, and back.

In namespaces of its own, since Ray finds such a cluster's nodes by their processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import long_only

CONFIG = {
    "cluster_name": "fake",
    "max_workers": 8,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.7,  # longer than trials take to begin
    **{key: {} for key in ("auth", "docker", "file_mounts")},
    "file_mounts_sync_continuously": False,
    **{
        key: []
        for key in (
            "initialization_commands",
            "setup_commands",
            "head_setup_commands",
            "worker_setup_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
            "cluster_synced_files",
            "rsync_exclude",
            "rsync_filter",
        )
    },
}
SCRIPT = r"""
set -e
ip link set lo up
mkdir -p /tmp/ray
mount -t tmpfs none /tmp/ray
mount -t tmpfs none /dev/shm
ray start --head --num-cpus=0 --autoscaling-config=cluster.json --include-dashboard=false >start
study="python -m study.tune fashion --dataset sample --num-samples 4 --epochs 1 --address auto"
$study 2>refused && exit 9
$study --gpus-per-worker 0 --wait 3 2>progress
python - <<'END'
import ray, time
ray.init("auto", logging_level="ERROR")
until = time.monotonic() + 180
while sum(node["Alive"] for node in ray.nodes()) > 1:
    assert time.monotonic() < until, "workers that nobody needs stay"
    time.sleep(1)
END
"""


@long_only
def test_from_no_worker_to_two_and_back(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-mnp", "true"], check=False).returncode:
        pytest.skip("namespaces need root")
    (tmp_path / "cluster.json").write_text(json.dumps(CONFIG))
    environment = {
        **os.environ,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_AUTH_MODE": "disabled",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [unshare, "-fpnm", "--mount-proc", "--kill-child", "bash", "-c", SCRIPT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--wait N" in (tmp_path / "refused").read_text()
    progress = (tmp_path / "progress").read_text()
    assert "2 at a time, each with 1 CPU" in progress
    assert "4 finished" in done.stdout
