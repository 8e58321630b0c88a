"""A team's Prefect and MLflow servers on a real PostgreSQL, started as docs/team.md says: flows and registrations
outlive restarts of each of them."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import PARAMS, ROOT, Project, Server, without_servers
from dotenv import dotenv_values
from mlflow import MlflowClient
from ruamel.yaml import YAML
from teams import Postgres, commands
from test_faults import FLOW, checkpoints
from waiting import wait_for

from cones.cli.servers import SERVERS_OWN, make_passwords

pytestmark = pytest.mark.slow

LONG = PARAMS.replace("n_ctx: 2, epochs: 2", "n_ctx: 2, epochs: 600, checkpoint_seconds: 0.2")
SETUP = commands("The machine with the servers")


class Team:
    """Both servers on PostgreSQL, by the commands of the page but for their ports and folders."""

    def __init__(self, folder: Path, postgres: Postgres) -> None:
        self.folder, self.postgres = folder, postgres
        for name in ("prefect.toml", "deploy"):
            (folder / name).symlink_to(ROOT / name)
        with contextlib.chdir(folder):
            make_passwords()
        known = {name: str(value) for name, value in dotenv_values(folder / ".env").items()}
        self.passwords = {name: value for name, value in known.items() if len(value) > 20}
        quiet = {"PREFECT_HOME": str(folder / "home"), "PGPORT": str(postgres.port)}
        self.prefect = Server(folder, [], "/api/health", **known, **quiet)
        self.mlflow = Server(folder, [], "/health", **known, **quiet)
        self.make_databases(**known)
        prefect = line("prefect server").replace("--background", f"--port {self.prefect.port}")
        mlflow = line("mlflow server").replace("nohup ", "").partition(" > ")[0].replace("5000", str(self.mlflow.port))
        self.prefect.command = ["sh", "-c", f"exec env {prefect}"]
        self.mlflow.command = ["sh", "-c", f"exec env {mlflow.replace('/shared', str(folder))} --workers 1"]

    def make_databases(self, **environment: str) -> subprocess.CompletedProcess:
        command = line("psql").replace("sudo --preserve-env=PGPASSWORD -u postgres psql", self.postgres.superuser())
        known = {**without_servers(), **environment}
        return subprocess.run(["sh", "-c", command], cwd=self.folder, env=known, capture_output=True, text=True)

    def clients(self) -> dict[str, str]:
        """The environment of a program that uses them."""
        logins = {name: self.passwords[name] for name in ("PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD")}
        return {
            "PREFECT_API_URL": f"http://127.0.0.1:{self.prefect.port}/api", "PREFECT_HOME": str(self.folder / "home"),
            "MLFLOW_TRACKING_URI": self.registry, "MLFLOW_TRACKING_USERNAME": "cones", **logins,
        }  # fmt: skip

    @property
    def registry(self) -> str:
        return f"http://127.0.0.1:{self.mlflow.port}"


def line(program: str) -> str:
    """The command of the page that runs a program."""
    (found,) = (command for command in SETUP if f"{program} " in command)
    return found


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Team]:
    made = Team(tmp_path_factory.mktemp("team"), postgres)
    servers = (made.prefect, made.mlflow)
    try:
        with ThreadPoolExecutor() as pool:
            for begun in [pool.submit(server.start) for server in servers]:
                begun.result()
        yield made
    finally:
        for server in servers:
            if server.process is not None:
                server.stop()


@pytest.fixture
def registered(team: Team, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, list[str]]]:
    """What the registry has: rows that are versions of `few`, and the names of finished runs."""

    def look() -> dict[str, list[str]]:
        for name, value in team.clients().items():
            monkeypatch.setenv(name, value)
        client = MlflowClient(team.registry, team.registry)
        known = client.get_experiment_by_name("few")
        runs = client.search_runs([known.experiment_id]) if known else []
        versions = client.search_model_versions("name = 'few'")
        assert {v.run_id for v in versions} <= {run.info.run_id for run in runs}
        return {
            "versions": sorted(v.tags["cones.row"] for v in versions),
            "runs": sorted(str(run.info.run_name) for run in runs if run.info.status == "FINISHED"),
        }

    return look


ROWS = ["few-cones", "few-coop", "few-zero-shot"]


@pytest.mark.timeout(600)
def test_registering_waits_for_no_database_and_two_at_once_register_a_row_once(
    team: Team, finished: Project, tmp_path: Path, registered: Callable
) -> None:
    project = finished.copy(tmp_path / "one")
    team.postgres.stop()
    try:
        away = project.cones("register", **team.clients())
    finally:
        team.postgres.start()
    assert away.returncode == 75
    assert f"MLflow at {team.registry} cannot be used" in away.stdout
    others = [project, finished.copy(tmp_path / "two")]
    running = [p.start(f"{i}.log", "cones", "register", **team.clients()) for i, p in enumerate(others)]
    assert [process.wait(240) for process in running] == [0, 0], project.log("0.log") + project.log("1.log")
    assert registered() == {"versions": ROWS, "runs": ROWS}
    fetched = project.cones("lookup", "few", **team.clients())
    assert "models:/few@champion" in fetched.stdout
    assert list((team.folder / "mlflow").rglob("concept.safetensors"))  # handed in and out by the server alone


@pytest.mark.timeout(600)
def test_a_flow_outlives_restarts_of_postgresql_and_of_prefect(
    team: Team, finished: Project, tmp_path: Path, registered: Callable
) -> None:
    project = finished.copy(tmp_path / "project")
    project.params(LONG)
    before = registered()["versions"].count("few-coop")
    team.postgres.stop()
    flow = project.start("flow.log", *FLOW, **team.clients())
    try:
        wait_for(lambda: "Encountered exception in request" in (team.folder / "server.log").read_text(), 240)
        team.postgres.start()
        wait_for(lambda: checkpoints(project.folder), 240)
        team.postgres.stop()
        time.sleep(2)
        team.postgres.start()
        team.prefect.stop()
        time.sleep(1)
        team.prefect.start()
        assert flow.poll() is None
        assert flow.wait(240) == 0, project.log("flow.log")
    finally:
        flow.kill()
    log = project.log("flow.log")
    assert "Finished in state Completed()" in log.splitlines()[-1]
    assert log.count("Running stage 'search@few-coop'") == 1
    versions = registered()["versions"]
    assert {row: versions.count(row) for row in ROWS} == {"few-cones": 1, "few-coop": before + 1, "few-zero-shot": 1}
    assert team.postgres.ask("prefect", "SELECT state_type FROM flow_run") == ["COMPLETED"]
    assert set(team.postgres.ask("prefect", "SELECT state_type FROM task_run")) == {"COMPLETED"}


def test_the_passwords_stand_in_no_log_and_on_no_command_line(team: Team) -> None:
    said = (team.folder / "server.log").read_text() + (team.postgres.folder / "log").read_text()
    for server in (team.prefect, team.mlflow):
        assert server.process is not None
        for process in (server.process, *server.process.children(recursive=True)):
            said += " ".join(process.cmdline())
    assert len(team.passwords) == 6
    assert not [name for name, value in team.passwords.items() if value.rpartition(":")[2] in said]
    assert set(SERVERS_OWN) <= set(team.passwords)


def test_databases_are_made_once_and_with_a_password(team: Team) -> None:
    told = team.make_databases()
    assert told.returncode != 0
    assert "PGPASSWORD is not set: `cones servers init`, then" in told.stderr
    assert 'role "cones" already exists' in team.make_databases(PGPASSWORD="another").stderr
    assert team.postgres.ask("postgres", "SELECT DISTINCT auth_method FROM pg_hba_file_rules WHERE type = 'host'") == [
        "scram-sha-256"
    ]


def test_docker_compose_starts_the_same_on_postgresql() -> None:
    services = YAML(typ="safe").load(ROOT / "docker-compose.postgres.yml")["services"]
    assert "postgresql:///mlflow " in line("mlflow server")
    assert "--backend-store-uri postgresql:///mlflow " in services["mlflow"]["entrypoint"][2]
    assert "--app-name basic-auth" in services["mlflow"]["entrypoint"][2]
    url = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
    assert f"{url}={services['prefect']['environment'][url]} " in line("prefect server")
    assert services["mlflow"]["environment"]["MLFLOW_AUTH_CONFIG_PATH"] == "/workspace/deploy/mlflow.ini"
    assert not [service for service in services.values() if "ports" in service]
    written = services["postgres"]["environment"].values()
    assert all(value.startswith("${PGPASSWORD") for value in written)
