"""Machines that are namespaces of this one: each has its own processes, network, home and /tmp.

A private network joins them, and nothing leads out of it. They end with the process that made them.
"""

from __future__ import annotations

import dataclasses
import getpass
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

USER = "ubuntu"
DESK = "10.77.0.1"  # where `ray up` is typed

DESK_SCRIPT = r"""
set -e
ip link set lo up
ip link add name br0 type bridge
ip addr add 10.77.0.1/24 dev br0
ip link set br0 up
mkdir -p /tmp/ray "$CONTROL"
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs tmpfs "$CONTROL"
number=1
for name in $NAMES; do
  number=$((number + 1))
  ADDRESS=10.77.0.$number NAME=$name unshare --fork --pid --net --mount --uts --ipc --mount-proc \
    --kill-child bash -c "$NODE_SCRIPT" >"$FOLDER/$name.log" 2>&1 &
  while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
  ip link add "veth$number" type veth peer name eth0 netns $!
  ip link set "veth$number" master br0 up
done
touch "$FOLDER/ready"
wait
"""

NODE_SCRIPT = r"""
set -e
hostname "$NAME"
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip addr add "$ADDRESS/24" dev eth0
ip link set eth0 up
ip route add default via 10.77.0.1  # a dead end; Ray asks for the address of this route
mount -t tmpfs tmpfs /mnt
mkdir /mnt/etc /mnt/shared /mnt/wheels /mnt/python /mnt/home
cp "$FOLDER"/etc/* /mnt/etc
chmod 755 /mnt /mnt/etc
chmod 600 /mnt/etc/host_key
mount --bind "$FOLDER/shared" /mnt/shared
mkdir -p "$FOLDER/$NAME/ubuntu/.config/pip"
mount --bind "$FOLDER/$NAME" /mnt/home
mount --bind "$WHEELS" /mnt/wheels
mount --bind "$PYTHON_PREFIX" /mnt/python
mount -t tmpfs -o mode=755 tmpfs /root  # an interpreter in there is to be seen by all
mkdir -p "$PYTHON_PREFIX"
mount --bind /mnt/python "$PYTHON_PREFIX"
cat /mnt/etc/passwd.more /etc/passwd >/mnt/etc/passwd
cat /mnt/etc/group.more /etc/group >/mnt/etc/group
mount --bind /mnt/etc/passwd /etc/passwd
mount --bind /mnt/etc/group /etc/group
mount --bind /mnt/home /home
echo "export PATH=$PYTHON_PREFIX/bin:\$PATH" >/home/ubuntu/.bashrc
printf '[global]\nno-index = true\nfind-links = /mnt/wheels\n' >/home/ubuntu/.config/pip/pip.conf
chown -R ubuntu:ubuntu /home/ubuntu
mount -t tmpfs -o size=4g tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir /run/sshd
exec /usr/sbin/sshd -D -e -f /mnt/etc/sshd_config
"""

SSHD = """\
Port 22
HostKey /mnt/etc/host_key
AuthorizedKeysFile /mnt/etc/authorized_keys
PasswordAuthentication no
UsePAM no
StrictModes no
PrintMotd no
"""


def missing() -> str | None:
    """Return why there can be no machines here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root, to make namespaces"
    for tool in ("unshare", "nsenter", "ip", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    flags = ["--fork", "--pid", "--net", "--mount", "--mount-proc"]
    if subprocess.run(["unshare", *flags, "true"], capture_output=True).returncode:
        return "this system lets nobody make namespaces"
    return None


@dataclasses.dataclass
class Machines:
    """A desk and nodes with SSH servers, 10.77.0.2 and up; `key` opens them.

    Attributes:
        folder: For all their files.
        names: Of the nodes.
        wheels: A folder with the wheels that pip finds on the nodes, which have no network.
        python: The interpreter that the nodes have.
    """

    folder: Path
    names: tuple[str, ...]
    wheels: Path
    python: Path

    @property
    def key(self) -> Path:
        return self.folder / "key"

    @property
    def home(self) -> Path:
        """The desk's home."""
        return self.folder / "home"

    @property
    def shared(self) -> Path:
        """A folder that all nodes have, as /mnt/shared."""
        return self.folder / "shared"

    def __enter__(self) -> Machines:
        etc = self.folder / "etc"
        for path in (etc, self.home, self.shared):
            path.mkdir()
        self.shared.chmod(0o777)
        for key in (self.key, etc / "host_key"):
            quiet = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
            subprocess.run(quiet, check=True)
        shutil.copy(self.key.with_suffix(".pub"), etc / "authorized_keys")
        (etc / "sshd_config").write_text(SSHD)
        (etc / "passwd.more").write_text(f"{USER}:*:1000:1000::/home/{USER}:/bin/bash\n")
        (etc / "group.more").write_text(f"{USER}:x:1000:\n")
        who = hashlib.sha256(getpass.getuser().encode()).hexdigest()[:10]
        variables = {
            "FOLDER": str(self.folder),
            "NAMES": " ".join(self.names),
            "NODE_SCRIPT": NODE_SCRIPT,
            "WHEELS": str(self.wheels),
            "PYTHON_PREFIX": str(self.python.parent.parent),
            "CONTROL": f"/tmp/ray_ssh_{who}",  # where Ray keeps its SSH connections
        }
        flags = ["--fork", "--pid", "--net", "--mount", "--uts", "--ipc", "--mount-proc"]
        self.process = subprocess.Popen(
            ["unshare", *flags, "--kill-child", "bash", "-c", DESK_SCRIPT],
            env={**os.environ, **variables},
        )
        deadline = time.monotonic() + 20
        while not (self.folder / "ready").exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.logs()
            time.sleep(0.05)
        # The namespaces belong to the child of `unshare`.
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.pid = children.read_text().split()[0]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # and with the first process of a PID namespace all others in it
        self.process.wait()

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in self.folder.glob("*.log"))

    def enter(self, cwd: Path) -> list[str]:
        """Return the words that put a command at the desk."""
        return ["nsenter", "--target", self.pid, "--all", f"--wd={cwd}"]

    def environment(self) -> dict[str, str]:
        """Return the variables at the desk."""
        return {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "TERM": "dumb",
            "TMPDIR": str(self.home),
            "PYTHONUNBUFFERED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # With autoscaler 2, Ray 2.60 starts no workers of a local provider.
            "RAY_UP_enable_autoscaler_v2": "0",
        }

    def desk(
        self, *command: object, cwd: Path, timeout: float = 120, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command where `ray up` is typed; stdout and stderr come as one."""
        done = subprocess.run(
            [*self.enter(cwd), *map(str, command)],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if check:
            assert done.returncode == 0, f"{command}:\n{done.stdout[-6000:]}\n{self.logs()}"
        return done

    def node(self, address: str, command: str, **kwargs: object) -> str:
        """Run a command on a node by SSH and return its output."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        login = ["ssh", "-q", "-i", self.key, *options, f"{USER}@{address}", command]
        return self.desk(*login, cwd=self.folder, **kwargs).stdout  # type: ignore[arg-type]
