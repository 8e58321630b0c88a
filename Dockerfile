# A worker: the locked environment, without root. The project itself is a clone mounted at /workspace, so that its
# git and DVC history, data and results stay outside the image.
#   docker build -t cones .
#   docker run --rm --gpus all -v "$PWD":/workspace -u "$(id -u):$(id -g)" -e PREFECT_API_URL=... cones
FROM python:3.11.17-slim-bookworm@sha256:0a310eeecf4e1f5a0743f9a6520c90c88d089c903ca5fd283f501e3a805f5f89

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /workspace

# As `make .venv/ready` installs: each package by its hash, what builds a package included.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /usr/src/cones
COPY requirements-build.txt requirements.txt requirements-cuda.txt ./
RUN pip install --no-deps --require-hashes -r requirements-build.txt \
    && pip install --no-deps --no-build-isolation --require-hashes -r requirements.txt -r requirements-cuda.txt \
    && pip check
COPY pyproject.toml README.md LICENSE ./
COPY cones cones
COPY models models
RUN pip install --no-deps --no-build-isolation . && pip check

# Any user id can run this and owns nothing in the image but the place of DVC's cache: its home is /tmp. The mounted
# clone's code comes first, and in a container of a work pool that of the clone that in-clone makes (deploy/).
COPY deploy/in-clone /usr/local/bin/
RUN useradd --no-create-home --uid 1000 cones && install --directory --owner cones /cache
USER cones
ENV HOME=/tmp \
    USER=cones \
    PYTHONPATH=/workspace \
    PYTHONDONTWRITEBYTECODE=1 \
    DO_NOT_TRACK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /workspace
ENTRYPOINT ["prefect", "worker", "start", "--type", "process", "--pool", "cones"]
