"""MLflow's client: where the registry is, and its failures in words."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cones
from cones.common.errors import TrackingError
from cones.registry.faults import fault, refuse_address
from cones.registry.home import make_database

QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Fail in seconds when the server is away, send no telemetry, and print no addresses, which may hold a password; a
value that is set already stands."""


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the project's own `mlflow.db`: of the folder you stand in, else of this clone."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    for root in (Path.cwd(), Path(cones.__file__).parent.parent):
        if (root / "params.yaml").exists() and (root / "dvc.yaml").exists():
            return f"sqlite:///{root / 'mlflow.db'}"
    raise TrackingError("there is no registry here; stand in a project's folder, or set MLFLOW_TRACKING_URI")


@contextmanager
def mlflow_client() -> Iterator[Any]:
    """An MLflow client. Its failures become `TrackingAway` where they may pass by themselves, else `TrackingError`;
    neither they nor what led to them hold a password. Those of local files stay what they are."""
    uri = tracking_uri()
    refuse_address(uri)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow
    from google.protobuf.json_format import Error as NoMessage
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        make_database(uri)
        yield mlflow.MlflowClient()
    except (MlflowException, SQLAlchemyError, RequestException, NoMessage, ConnectionError, TimeoutError) as error:
        raise fault(error, uri) from None
