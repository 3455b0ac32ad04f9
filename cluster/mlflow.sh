#!/usr/bin/env bash
# MLflow server on the head node.
#
#     bash mlflow.sh start [FLAGS of `mlflow server`]    starts or restarts it
#     bash mlflow.sh stop
#
# It listens on 127.0.0.1:5000 only, keeps running without a terminal, and is restarted if it ends.
set -euo pipefail
folder="$HOME/mlflow"
pid_file="$folder/keeper.pid"
log="$folder/server.log"
ENDED="mlflow.sh: the server ended"

stop() {
  local pid
  pid=$(cat "$pid_file" 2>/dev/null) || return 0
  # After a reboot the pid may belong to another process.
  if tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q 'mlflow.sh keep '; then
    kill -TERM -- "-$pid"
    for _ in $(seq 100); do
      kill -0 -- "-$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL -- "-$pid" 2>/dev/null || true
  fi
  rm -f "$pid_file"
}

answers() {
  python -c 'import urllib.request as u; u.urlopen("http://127.0.0.1:5000/health", timeout=5)' \
    2>/dev/null
}

case "${1:-}" in
start)
  shift
  mkdir -p "$folder"
  stop
  [ ! -f "$log" ] || mv "$log" "$log.old"
  setsid bash "${BASH_SOURCE[0]}" keep "$@" </dev/null >>"$log" 2>&1 &
  echo $! >"$pid_file"
  while [ "$SECONDS" -lt 120 ]; do # since the start of this script
    if answers; then
      echo "MLflow runs on http://127.0.0.1:5000"
      exit 0
    fi
    if grep -qs "$ENDED" "$log"; then break; fi
    sleep 1
  done
  tail -n 30 "$log" >&2
  echo "mlflow.sh FAILED: the server does not answer; the end of $log is above" >&2
  stop
  exit 1
  ;;
keep) # in its own session, which `stop` ends as a whole
  shift
  export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # saves eight processes that only language models need
  while true; do
    mlflow server --host 127.0.0.1 --port 5000 "$@" || true
    echo "$ENDED; restarting in 5 seconds"
    sleep 5
  done
  ;;
stop) stop ;;
*)
  sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
  ;;
esac
