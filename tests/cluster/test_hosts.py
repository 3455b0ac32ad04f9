"""Three hosts with addresses of their own and nothing in common but a bucket; one is cut off.

The hosts are namespaces of this machine: own network, processes and shared memory, joined by a
bridge from which nothing leads out.
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

HOST = r"""
set -e
hostname "host$NUMBER"
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip addr add "10.78.0.$NUMBER/24" dev eth0
ip link set eth0 up
ip route add default via 10.78.0.1  # a dead end; Ray asks for the address of this route
mount -t tmpfs none /tmp/ray
mount -t tmpfs none /dev/shm
mkdir "$WORK/host$NUMBER"
cd "$WORK/host$NUMBER"
export STUDY_CACHE_DIR=$PWD/cache
common="--num-cpus=1 --node-ip-address=10.78.0.$NUMBER --disable-usage-stats"
if [ "$NUMBER" = 2 ]; then
  ray start --head --port=6379 --include-dashboard=false $common
  python -m study.tune fashion --dataset sample --num-samples 6 --epochs 5 --scheduler none \
    --set batch_size=8 --set hidden=16 --studies-dir s3://team/studies --address 10.78.0.2:6379 \
    --wait 3 >"$WORK/summary" 2>"$WORK/progress"
else
  until ray start --address=10.78.0.2:6379 $common; do sleep 1; done
  sleep infinity
fi
"""
DESK = r"""
import json, os, subprocess, sys, time, urllib.request
import boto3

def run(*words):
    subprocess.run(words, check=True)

run("ip", "link", "set", "lo", "up")
run("ip", "link", "add", "name", "br0", "type", "bridge")
run("ip", "addr", "add", "10.78.0.1/24", "dev", "br0")
run("ip", "link", "set", "br0", "up")
os.makedirs("/tmp/ray", exist_ok=True)
moto = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "10.78.0.1", "-p", "5000"])
s3 = boto3.client("s3")
for _ in range(100):
    try:
        s3.create_bucket(Bucket="team")
        break
    except Exception:
        time.sleep(0.2)
hosts = {}
here = os.readlink("/proc/self/ns/net")
for number in (2, 3, 4):
    hosts[number] = subprocess.Popen(
        ["unshare", "-fpnmui", "--mount-proc", "--kill-child", "bash", "-c", os.environ["HOST"]],
        env={**os.environ, "NUMBER": str(number)},
    )
    while os.readlink(f"/proc/{hosts[number].pid}/ns/net") == here:
        time.sleep(0.05)
    peer = ("peer", "name", "eth0", "netns", str(hosts[number].pid))
    run("ip", "link", "add", f"veth{number}", "type", "veth", *peer)
    run("ip", "link", "set", f"veth{number}", "master", "br0", "up")

def keys():
    listed = s3.list_objects_v2(Bucket="team", MaxKeys=1000).get("Contents", [])
    return [entry["Key"] for entry in listed]

while sum(key.endswith("last.pt") for key in keys()) < 3:
    assert hosts[2].poll() is None, "the study ended too early"
    time.sleep(0.5)
run("ip", "link", "set", "veth4", "down")  # nobody is told that the host is gone
hosts[4].kill()
print("host4 is cut off", flush=True)
code = hosts[2].wait()
trials = [json.loads(s3.get_object(Bucket="team", Key=key)["Body"].read())
          for key in keys() if key.endswith("trial.json")]
print("RESULT " + json.dumps({"code": code, "trials": trials}))
"""


@long_only
def test_a_host_that_is_cut_off_costs_an_epoch(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-mnp", "true"], check=False).returncode:
        pytest.skip("namespaces need root")
    pytest.importorskip("moto.server")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOST": HOST,
        "WORK": str(tmp_path),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "AWS_ENDPOINT_URL": "http://10.78.0.1:5000",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    namespaces = (unshare, "-fpnm", "--mount-proc", "--kill-child")
    done = subprocess.run(
        [*namespaces, sys.executable, "-c", DESK],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    told = (tmp_path / "progress").read_text() if (tmp_path / "progress").exists() else ""
    assert "RESULT " in done.stdout, done.stdout + done.stderr + told
    result = json.loads(done.stdout.partition("RESULT ")[2])
    assert result["code"] == 0, told
    assert [trial["state"] for trial in result["trials"]] == ["finished"] * 6
    moved = [trial for trial in result["trials"] if trial["failures"]]
    assert moved and "3 at a time" in told
    for trial in result["trials"]:
        assert [row["epoch"] for row in trial["history"]] == [1, 2, 3, 4, 5]
    print(told)
