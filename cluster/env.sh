# Environment of the shells on a node: ~/.bashrc reads this file, so it applies to `ray exec`,
# `ray submit`, Ray itself and thus to every job and trial.
export PATH="$HOME/venv/bin:$PATH"
export RAY_AUTH_MODE=token # without the token Ray does not start, instead of starting open to everyone
export RAY_USAGE_STATS_ENABLED=0
export MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_TRACKING_URI=http://127.0.0.1:5000 # on the head, where a study's driver runs
export RAY_JOB_STOP_WAIT_TIME_S=30 # from `ray job stop` to the forced kill, so that trials can save
export STUDY_DATA_DIR="$HOME/project/data"
