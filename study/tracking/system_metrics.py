"""How busy the driver's machine is, in the study's run: cores, memory, GPUs, disk and network.

MLflow's own monitor, which needs psutil (and for GPUs nvidia-ml-py); its metrics are `system/...`.
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
        """Whether it gave up, as it does when the store does not answer."""
        return not self._thread.is_alive()

    def flush(self) -> None:
        """Log what was collected."""
        self._monitor.mlflow_logger.flush()
