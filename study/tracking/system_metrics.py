"""System metrics of the driver's machine in the study's run: CPU, memory, GPUs, disk and network.

Uses MLflow's own monitor, which needs psutil (and nvidia-ml-py for GPUs) and logs `system/...`.
"""

from __future__ import annotations

import threading
from typing import Any


class SystemWatch:
    """Logs every ten seconds (`$MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`) while the run is RUNNING.

    Args:
        uri: Absolute tracking URI.
        run_id: The study's run.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # and psutil

        self._monitor: Any = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            run_id, resume_logging=True, tracking_uri=uri
        )
        self._thread = threading.Thread(target=self._monitor.monitor, name="system", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the monitor gave up, which it does when the store does not answer."""
        return not self._thread.is_alive()

    def flush(self) -> None:
        """Log the collected metrics."""
        self._monitor.mlflow_logger.flush()
