# What shells on a node have: ~/.bashrc reads this, so the commands of `ray exec` and `ray submit`,
# Ray itself and with it every job and trial have it too.
export PATH="$HOME/venv/bin:$PATH"
export RAY_AUTH_MODE=token # without the token Ray does not start, rather than start open to all
export RAY_USAGE_STATS_ENABLED=0
export MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_TRACKING_URI=http://127.0.0.1:5000 # on the head, where the driver of a study runs
export RAY_JOB_STOP_WAIT_TIME_S=30 # from `ray job stop` to the end by force; trials save first
export STUDY_DATA_DIR="$HOME/project/data"
