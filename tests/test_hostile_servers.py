"""What a hostile web page can ask of the servers as README and docker-compose.yml start them: real ones, by their own
commands, on free ports. A page of another origin sends what a browser lets it send, with or without a preflight; one
whose name was made to point here (DNS rebinding) sends anything, under its own name as Host."""

import base64
import contextlib
import http.client
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, Server, without_servers
from dotenv import dotenv_values
from ruamel.yaml import YAML
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from cones.cli import doctor
from cones.cli.servers import make_passwords

COMPOSE = YAML(typ="safe").load(ROOT / "docker-compose.yml")["services"]
README = (ROOT / "README.md").read_text()
JSON = {"Content-Type": "application/json"}
DEPLOYMENT = {
    "name": "mine", "flow_id": "00000000-0000-0000-0000-000000000000", "work_pool_name": "cones",
    "entrypoint": "x.py:x", "job_variables": {"command": "touch /tmp/taken"},
}  # fmt: skip
CREATE = "/api/2.0/mlflow/experiments/create"
SEARCH = "/api/2.0/mlflow/registered-models/search"


class Servers:
    """One of each: Prefect and MLflow's UI as README has them, MLflow as docker-compose.yml has it for a team."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.passwords = {name: str(value) for name, value in dotenv_values(folder / ".env").items()}
        quiet = {"PREFECT_HOME": str(folder / "home"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        self.prefect = Server(folder, [], "/api/health", **quiet)
        self.prefect.command = [*shlex.split(line("prefect server start"))[:3], "--port", str(self.prefect.port)]
        self.ui = Server(folder, [], "/health", **COMPOSE["mlflow"]["environment"])
        own = [w.replace("5000", str(self.ui.port)) for w in shlex.split(line("mlflow ui"))]
        self.ui.command = [*own, "--port", str(self.ui.port), "--workers", "1"]
        self.team = Server(folder, [], "/health", **self.passwords, **COMPOSE["mlflow"]["environment"])
        shell = COMPOSE["mlflow"]["entrypoint"][2].replace("5000", str(self.team.port))
        here = shell.replace("/workspace", str(folder)).replace("0.0.0.0", "127.0.0.1")
        self.team.command = ["sh", "-c", f"{here} --workers 1"]
        self.all = (self.prefect, self.ui, self.team)

    def login(self, name: str) -> dict[str, str]:
        if name == "prefect":
            return basic(self.passwords["PREFECT_API_AUTH_STRING"])
        return basic(f"{self.passwords['MLFLOW_TRACKING_USERNAME']}:{self.passwords['MLFLOW_TRACKING_PASSWORD']}")


def line(command: str) -> str:
    """The line of README that starts a server."""
    (found,) = re.findall(rf"^    ({command}\b.*)$", README, re.M)
    return found


def basic(login: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    (folder / "prefect.toml").write_text((ROOT / "prefect.toml").read_text())
    with contextlib.chdir(folder):
        make_passwords()
    made = Servers(folder)
    try:
        with ThreadPoolExecutor() as pool:
            for begun in [pool.submit(server.start) for server in made.all]:
                begun.result()
        yield made
    finally:
        for server in made.all:
            if server.process is not None:
                server.stop()


def ask(server: Server, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers in lower case and text of an answer. `%` in a header's value stands for the server's port."""
    headers = {name: value.replace("%", str(server.port)) for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    data = b"" if body is None else json.dumps(body).encode()
    for name, value in {**headers, "Content-Length": str(len(data))}.items():
        connection.putheader(name, value)
    connection.endheaders(data)
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text


PAGES = {
    "no content type": {"Origin": "https://evil.example"},
    "plain text": {"Origin": "https://evil.example", "Content-Type": "text/plain"},
    "form": {"Origin": "https://evil.example", "Content-Type": "application/x-www-form-urlencoded"},
    "no origin told": {"Origin": "null"},
    "another local server": {"Origin": "http://localhost:3000"},
    "our name within": {"Origin": "http://127.0.0.1.evil.example:%"},
    "our name as a user": {"Origin": "http://127.0.0.1:%@evil.example"},
    "rebound": {"Origin": "http://evil.example:%", "Host": "evil.example:%", **JSON},
    "rebound, private": {"Origin": "http://10.evil.example:%", "Host": "10.evil.example:%", **JSON},
    "rebound, no origin": {"Host": "evil.example", **JSON},
    "a program of another user": JSON,
}
LOGINS = {
    "nothing": {},
    "empty": {"Authorization": ""},
    "empty Basic": {"Authorization": "Basic "},
    "wrong password": basic("cones:password1234"),
    "user alone": basic("cones:"),
    "MLflow's default": basic("admin:password1234"),
    "password alone": basic("password"),
    "NUL": basic("cones:\0"),
    "no base64": {"Authorization": "Basic !!!"},
    "Bearer": {"Authorization": "Bearer x"},
    "two words": {"Authorization": "Basic a b"},
    "what prefect.toml says": basic("run `cones servers init` first"),
}


@pytest.mark.parametrize(
    ("page", "login"), [*((page, "nothing") for page in PAGES), *(("plain text", login) for login in LOGINS)]
)
def test_no_page_hands_the_worker_a_command(servers: Servers, page: str, login: str) -> None:
    status, headers, text = ask(
        servers.prefect, "POST", "/api/deployments/", DEPLOYMENT, **PAGES[page], **LOGINS[login]
    )  # fmt: skip
    assert (status, json.loads(text)) == (401, {"exception_message": "Unauthorized"})
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("page", PAGES)
def test_no_page_changes_a_teams_registry(servers: Servers, page: str) -> None:
    status, headers, text = ask(servers.team, "POST", CREATE, {"name": "mine"}, **PAGES[page])
    assert status in (401, 403)
    assert text.startswith(("You are not authenticated", "Invalid Host header", "Cross-origin request blocked"))
    assert headers.get("access-control-allow-origin") in (None, "http://localhost:3000")


PREFECT_PATHS = """POST flows/, POST flow_runs/, POST work_pools/, PATCH work_pools/cones, POST block_documents/,
POST automations/, POST deployments/filter, POST flow_runs/filter, POST artifacts/filter, POST logs/,
GET admin/settings, GET admin/version, POST admin/database/drop, POST ui/flow_runs/history, POST health,
GET csrf-token?client=x, GET variables/name/health, GET //health, GET health/, GET ready/../flows,
POST work_pools/cones/get_scheduled_flow_runs, POST concurrency_limits/, DELETE flows/x, OPTIONS flows/"""


@pytest.mark.parametrize("what", PREFECT_PATHS.split(","))
def test_prefect_answers_nothing_without_the_password(servers: Servers, what: str) -> None:
    method, path = what.split()
    status, headers, _ = ask(servers.prefect, method, f"/api/{path}", {"name": "x"}, **JSON, Host="evil.example")
    assert status == 401
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("path", ["/", "/ui-settings", "/v2/", "/docs", "/openapi.json", "/api/health", "/api/ready"])
def test_what_prefect_shows_to_all_holds_no_password(servers: Servers, path: str) -> None:
    status, headers, text = ask(servers.prefect, "GET", path, Origin="https://evil.example")
    assert status in (200, 307)
    assert "access-control-allow-origin" not in headers
    assert not [secret for secret in servers.passwords.values() if len(secret) > 20 and secret in text]
    if path == "/ui-settings":
        assert json.loads(text)["auth"] == "BASIC"  # the page asks for it


@pytest.mark.parametrize(
    ("path", "token"),
    [
        *(("events/in", token) for token in ("no protocol", None, "", "cones:wrong")),
        ("events/out", ""),
        ("logs/out", ""),
    ],
)
def test_no_page_listens_to_prefect_or_tells_it_of_events(servers: Servers, path: str, token: str | None) -> None:
    """A socket is open to pages of every origin."""
    words = None if token == "no protocol" else ["prefect"]
    url = f"ws://127.0.0.1:{servers.prefect.port}/api/{path}"

    def listen() -> None:
        with connect(url, origin="https://evil.example", subprotocols=words) as socket:
            socket.send(json.dumps({"type": "auth", "token": token}))
            socket.recv(timeout=20)

    with pytest.raises(WebSocketException, match=r"HTTP 403|Auth required but no token provided|Invalid token"):
        listen()


ORIGINS = {page["Origin"]: name for name, page in PAGES.items() if "Origin" in page}
FOREIGN = [origin for origin, name in ORIGINS.items() if name != "another local server"]


@pytest.mark.parametrize(
    ("of", "origin"), [*(("prefect", o) for o in ORIGINS), *(("ui", o) for o in ORIGINS), ("team", FOREIGN[0])]
)
def test_a_preflight_from_elsewhere_is_refused(servers: Servers, of: str, origin: str) -> None:
    path = "/api/deployments/" if of == "prefect" else CREATE
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,authorization"}
    status, headers, _ = ask(getattr(servers, of), "OPTIONS", path, Origin=origin, **asked)
    if of != "prefect" and origin not in FOREIGN:  # MLflow takes pages of this machine for ours
        assert status == 200
        return
    assert status == 400
    assert "access-control-allow-origin" not in headers


HOSTS = [
    "evil.example", "evil.example:%", "10.evil.example:%", "192.168.evil.example", "172.16.evil.example:%",
    "fd00:evil.example", "127.0.0.1.evil.example:%", "localhost.evil.example:%", "127.0.0.1:1", "localhost",
    "0.0.0.0:%", "10.0.0.3:%", "[::1]:%", "",
]  # fmt: skip


@pytest.mark.parametrize(("of", "host"), [*(("ui", host) for host in HOSTS), *(("team", host) for host in HOSTS[:3])])
def test_mlflow_answers_to_its_own_names_only(servers: Servers, of: str, host: str) -> None:
    """Also with the right password, which a browser adds by itself once it was typed in."""
    server, login = getattr(servers, of), servers.login("mlflow")
    for method, path in (("GET", SEARCH), ("POST", CREATE), ("GET", "/"), ("POST", "/graphql")):
        status, _, text = ask(server, method, path, {"name": "x"}, **JSON, **login, Host=host)
        assert (status, text) == (403, "Invalid Host header - possible DNS rebinding attack detected"), path


@pytest.mark.parametrize(
    ("of", "kind", "origin"),
    [
        *(("ui", "text/plain", origin) for origin in FOREIGN),
        *((of, kind, FOREIGN[0]) for of in ("ui", "team") for kind in ("application/json", "")),
    ],
)
def test_mlflow_is_not_changed_from_elsewhere(servers: Servers, of: str, kind: str, origin: str) -> None:
    asked = {"Origin": origin, "Content-Type": kind, **servers.login("mlflow")}
    for path in (CREATE, CREATE.replace("api", "ajax-api"), "/api/2.0/mlflow/registered-models/create"):
        status, headers, text = ask(getattr(servers, of), "POST", path, {"name": "x"}, **asked)
        assert (status, text) == (403, "Cross-origin request blocked")
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("login", LOGINS)
def test_a_teams_registry_wants_its_password(servers: Servers, login: str) -> None:
    assert ask(servers.team, "GET", SEARCH, **LOGINS[login])[0] == 401


@pytest.mark.parametrize("path", ["/", "/version", "/graphql", "/get-artifact?path=x", "/metrics", "/signup"])
def test_a_team_shows_nothing_without_its_password(servers: Servers, path: str) -> None:
    assert ask(servers.team, "GET", path)[0] == 401


def test_with_the_password_they_work(servers: Servers) -> None:
    status, _, text = ask(servers.prefect, "POST", "/api/deployments/filter", {}, **JSON, **servers.login("prefect"))
    assert (status, json.loads(text)) == (200, [])
    for server, login in ((servers.ui, {}), (servers.team, servers.login("mlflow"))):
        for host in ("127.0.0.1:%", "localhost:%"):
            assert ask(server, "POST", CREATE, {"name": host}, **JSON, **login, Host=host)[0] == 200
            assert ask(server, "GET", SEARCH, **login, Host=host)[0] == 200
    assert ask(servers.team, "GET", SEARCH, **servers.login("mlflow"), Host="mlflow:%")[0] == 200  # the worker's name
    for name in ("http://127.0.0.1:4200", "http://localhost:4200"):
        headers = ask(servers.prefect, "GET", "/api/health", Origin=name)[1]
        assert headers["access-control-allow-origin"] == name


def test_prefects_own_client_reads_the_password_from_the_folder(servers: Servers, tmp_path: Path) -> None:
    """And without the file neither a client is let in nor does a server start."""
    (tmp_path / "prefect.toml").write_text((ROOT / "prefect.toml").read_text())
    url = f"http://127.0.0.1:{servers.prefect.port}/api"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {**without_servers(), "PATH": path, "PREFECT_HOME": str(tmp_path / "home"), "DO_NOT_TRACK": "1"}

    def run(folder: Path, command: str, **more: str) -> tuple[int, str]:
        done = subprocess.run(shlex.split(command), cwd=folder, text=True, capture_output=True, env={**quiet, **more})
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    with ThreadPoolExecutor() as pool:
        create = "prefect work-pool create cones --type process"
        let_in = pool.submit(run, servers.folder, create, PREFECT_API_URL=url)
        kept_out = pool.submit(run, tmp_path, create.replace("cones", "mine"), PREFECT_API_URL=url)
        started = pool.submit(run, tmp_path, line("prefect server start"))
    assert let_in.result()[0] == 0, let_in.result()[1]
    assert kept_out.result()[0] != 0
    assert "401" in kept_out.result()[1]
    assert started.result()[0] == 1
    assert started.result()[1].startswith("Invalid host 'run `cones servers init` first'.")
    assert not (tmp_path / "home" / "server.pid").exists()
    said = " ".join(text for _, text in (let_in.result(), kept_out.result(), started.result()))
    logs = (servers.folder / "server.log").read_text()
    assert not [secret for secret in servers.passwords.values() if len(secret) > 20 and secret in said + logs]


def test_the_doctor_says_which_servers_ask_for_a_password(servers: Servers) -> None:
    answers = [
        doctor._answers(what, f"http://me:geheim@127.0.0.1:{server.port}{under}", path, "start it", "lock it")
        for what, server, under, path in (
            ("Prefect", servers.prefect, "/api", "/admin/version"),
            ("MLflow", servers.team, "", "/version"),
            ("MLflow", servers.ui, "", "/version"),
            ("Prefect", servers.ui, "", "/version"),
        )
    ]
    assert [a.well for a in answers] == [True, True, True, False]
    assert [a.found.partition(" ")[2] for a in answers] == [
        "answers and asks for a password", "answers and asks for a password",
        "answers (200) and asks for no password", "answers (200) and asks for no password",
    ]  # fmt: skip
    assert answers[3].to_do == "lock it"
    assert not [a for a in answers if "geheim" in a.found]


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_the_health_checks_of_docker_compose_need_no_password(servers: Servers, name: str) -> None:
    port, server = ("4200", servers.prefect) if name == "prefect" else ("5000", servers.team)
    _, *command = COMPOSE[name]["healthcheck"]["test"]
    checked = [word.replace(port, str(server.port)) for word in command]
    assert subprocess.run([sys.executable, *checked[1:]], timeout=60).returncode == 0


def test_docker_compose_starts_nothing_without_the_passwords() -> None:
    assert {service["env_file"] for service in COMPOSE.values()} == {".env"}
    assert "--app-name basic-auth" in COMPOSE["mlflow"]["entrypoint"][2]
    shared = [name for service in COMPOSE.values() for name in service.get("environment", {})]
    assert not [name for name in shared if "AUTH" in name or "PASSWORD" in name]


def test_every_command_that_opens_mlflows_pages_names_its_hosts() -> None:
    for text in (README, (ROOT / "Makefile").read_text()):
        for command in re.findall(r"mlflow (?:ui|server) .*", text):
            assert "--allowed-hosts 127.0.0.1:5000,localhost:5000" in command
