"""The pattern of Ray's documentation: a Ray Train run inside each Tune trial, logged to MLflow.

    python tests/benchmarks/ray_pattern.py CONFIGS.json     # in an empty folder

From "Hyperparameter Tuning with Ray Tune" (Ray Train V2, Ray 2.60): a Tune function, the driver,
builds a TorchTrainer with `TuneReportCallback` and calls `fit`. Started by `studies.py`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any


def train_worker(config: dict[str, Any]) -> None:
    """Train one trial; runs in the Train worker."""
    import ray.train
    import torch
    from plain_loop import epochs, loaders, net
    from ray.train.torch import prepare_data_loader, prepare_model

    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    train, val = (prepare_data_loader(loader) for loader in loaders(config))
    model = prepare_model(net(config))
    for metrics in epochs(config, model, train, val):
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), Path(folder) / "model.pt")
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def train_driver(config: dict[str, Any]) -> None:
    """Run one trial; the function that Tune calls."""
    import ray.train
    import ray.tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config["trial"],
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name=f"train-{ray.tune.get_context().get_trial_id()}",
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()


def main() -> None:
    import ray
    import ray_pattern
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    configs = json.loads(Path(sys.argv[1]).read_text())
    home = Path.cwd()
    # Two workers of a core each; the drivers, which only wait, on paper a core of their own.
    ray.init(address="local", num_cpus=4)
    tuner = tune.Tuner(
        tune.with_resources(ray_pattern.train_driver, {"cpu": 1}),
        param_space={"trial": tune.grid_search(configs), "storage": str(home / "train")},
        tune_config=tune.TuneConfig(max_concurrent_trials=2, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(home / "tune"),
            callbacks=[
                MLflowLoggerCallback(
                    tracking_uri=f"sqlite:///{home}/mlflow.db", experiment_name="ray_pattern"
                )
            ],
        ),
    )
    results = tuner.fit()
    scores = [result.metrics["val/accuracy"] for result in results]
    assert len(scores) == len(configs), results.errors
    (home / "scores.json").write_text(json.dumps(scores))


if __name__ == "__main__":
    main()
