# A worker: the locked environment, without root. The project itself is a clone mounted at /workspace, so that its
# git and DVC history, data and results stay outside the image.
#   docker build -t cones .
#   docker run --rm --gpus all -v "$PWD":/workspace -u "$(id -u):$(id -g)" -e PREFECT_API_URL=... cones
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /workspace

COPY requirements.txt /usr/src/cones/
RUN pip install --no-cache-dir --disable-pip-version-check -r /usr/src/cones/requirements.txt
COPY pyproject.toml README.md LICENSE /usr/src/cones/
COPY cones /usr/src/cones/cones
COPY models /usr/src/cones/models
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps /usr/src/cones

# Any user id can run this: the home folder is open to all, and the name is given. The mounted clone's code comes first.
RUN useradd --create-home --uid 1000 cones && chmod 777 /home/cones
USER cones
ENV HOME=/home/cones \
    USER=cones \
    PYTHONPATH=/workspace \
    PYTHONDONTWRITEBYTECODE=1 \
    DO_NOT_TRACK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /workspace
ENTRYPOINT ["prefect", "worker", "start", "--type", "process", "--pool", "cones"]
