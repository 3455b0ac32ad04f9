#!/usr/bin/env bash
# Set up a node, head or worker: Python, packages, this project, data of the tasks given.
#
#     bash setup.sh [TASK ...]
#
# Running it again updates only what has changed. An error ends it, and `ray up`, with a line that
# names it; unavailable data are reported but are not an error.
set -Eeuo pipefail
trap 'echo "setup.sh FAILED in line $LINENO: $BASH_COMMAND" >&2' ERR

PYTHON=3.12 # minor version on all nodes: Ray refuses to join nodes with different ones
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="$HOME/venv"

usable() { # PYTHON: does it have the right version, and can it create virtual environments?
  "$1" -c "import ensurepip, sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$PYTHON')" \
    2>/dev/null
}

if ! usable "$venv/bin/python"; then
  if ! usable "python$PYTHON"; then
    echo "== installing Python $PYTHON"
    apt=(env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a apt-get -qq -y)
    [ "$(id -u)" = 0 ] || apt=(sudo "${apt[@]}")
    if command -v cloud-init >/dev/null; then
      cloud-init status --wait >/dev/null || true # a new machine is still installing its own packages
    fi
    "${apt[@]}" -o DPkg::Lock::Timeout=300 update
    "${apt[@]}" -o DPkg::Lock::Timeout=300 install "python$PYTHON" "python$PYTHON-venv"
  fi
  "python$PYTHON" -m venv --clear "$venv"
fi

echo "== packages for Python $("$venv/bin/python" -c 'import platform; print(platform.python_version())')"
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$venv/bin/pip" install --quiet --requirement cluster/requirements.txt
"$venv/bin/pip" uninstall -qq --yes study # the project's distribution up to 0.1.0
"$venv/bin/pip" install --quiet --force-reinstall --no-deps --no-build-isolation .
"$venv/bin/pip" check

line='. "$HOME/project/cluster/env.sh"'
grep -qxF "$line" ~/.bashrc 2>/dev/null || echo "$line" >>~/.bashrc
# shellcheck source=/dev/null
. cluster/env.sh

for task in "$@"; do
  echo "== data of $task"
  if ! python -m study.data "$task"; then
    echo "setup.sh: NO DATA for $task on this node, so studies of it cannot run here. Put the data into" \
      "data/ beside cluster.yaml and run 'ray up' again. (Other tasks are not affected.)" >&2
  fi
done
echo "== node is ready"
