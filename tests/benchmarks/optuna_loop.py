"""A plain Optuna loop: two processes on one study, torchvision, MLflow.

    python tests/benchmarks/optuna_loop.py CONFIGS.json     # in an empty folder

The study is a journal file, the MLflow store SQLite; started by `studies.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from plain_loop import epochs, loaders, net

PROCESSES = 2


def open_study() -> optuna.Study:
    storage = JournalStorage(JournalFileBackend("journal.log"))
    return optuna.create_study(
        storage=storage, study_name="loop", direction="maximize", load_if_exists=True
    )


def work(configs: list[dict[str, Any]]) -> None:
    """Take trials from the study until it has all."""
    torch.set_num_threads(1)
    mlflow.set_experiment("optuna_loop")

    def objective(trial: optuna.Trial) -> float:
        searched = {
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-7, 1e-3, log=True),
            "width1": trial.suggest_int("width1", 4, 64, log=True),
            "width2": trial.suggest_int("width2", 4, 128, log=True),
        }
        config = {**configs[trial.number], **searched}
        torch.manual_seed(config["seed"])
        train, val = loaders(config)
        model = net(config)
        best = 0.0
        with mlflow.start_run(run_name=f"trial {trial.number}"):
            mlflow.log_params(config)
            for epoch, metrics in enumerate(epochs(config, model, train, val), start=1):
                mlflow.log_metrics(metrics, step=epoch)
                trial.report(metrics["val/accuracy"], epoch)
                if metrics["val/accuracy"] > best:
                    best = metrics["val/accuracy"]
                    torch.save(model.state_dict(), f"trial-{trial.number}.pt")
            mlflow.log_artifact(f"trial-{trial.number}.pt")
        return best

    everything = MaxTrialsCallback(len(configs), states=(TrialState.COMPLETE, TrialState.RUNNING))
    open_study().optimize(objective, callbacks=[everything])


def main() -> None:
    configs = json.loads(Path(sys.argv[1]).read_text())
    mlflow.set_tracking_uri(f"sqlite:///{Path.cwd()}/mlflow.db")
    if "--worker" in sys.argv:
        work(configs)
        return
    mlflow.set_experiment("optuna_loop")  # makes the store, before two processes would
    study = open_study()
    names = ("learning_rate", "weight_decay", "width1", "width2")
    for config in configs:
        study.enqueue_trial({name: config[name] for name in names})
    command = [sys.executable, __file__, sys.argv[1], "--worker"]
    workers = [subprocess.Popen(command) for _ in range(PROCESSES)]
    assert [worker.wait() for worker in workers] == [0] * PROCESSES
    scores = [trial.value for trial in open_study().trials]
    assert len(scores) == len(configs)
    Path("scores.json").write_text(json.dumps(scores))


if __name__ == "__main__":
    main()
