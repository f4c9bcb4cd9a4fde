"""Image and compose file: no engine runs here, so their rules are checked and their commands are run as processes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from queue_pg.settings import Settings, variables

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ["migrate", "api", "worker"]
INSTRUCTIONS = [
    (line.split()[0], line.split(maxsplit=1)[1])
    for line in re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
    if line and not line.startswith("#")
]
QUEUE_PG = Path(sys.executable).parent / "queue-pg"


def values(instruction: str) -> list[str]:
    return [value for name, value in INSTRUCTIONS if name == instruction]


def substitute(text: str, given: dict[str, str]) -> str:
    """Compose's `${NAME:-default}` and `$$`."""

    def value(match: re.Match[str]) -> str:
        return given.get(match["name"]) or match["default"]

    return re.sub(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", value, text).replace("$$", "$")


# -- Dockerfile --------------------------------------------------------------------------------------------------------


def test_image_runs_unprivileged_and_checks_its_health() -> None:
    assert values("USER") == ["1000:1000"]
    assert any("--uid 1000" in value for value in values("RUN"))
    names = [name for name, _ in INSTRUCTIONS]
    assert names.index("USER") > max(index for index, name in enumerate(names) if name in ("RUN", "COPY"))
    assert len(values("HEALTHCHECK")) == 1
    assert "--interval=5s --timeout=3s" in values("HEALTHCHECK")[0]
    assert "--retries=5" in values("HEALTHCHECK")[0]


def test_image_is_slim_has_two_stages_and_caches_its_libraries() -> None:
    bases = values("FROM")
    assert len(bases) == 2
    assert all(re.match(r"python:3\.\d+-slim\b", base) for base in bases)
    steps = [f"{name} {value}" for name, value in INSTRUCTIONS]
    lock = next(index for index, step in enumerate(steps) if step.startswith("COPY requirements.lock"))
    libraries = next(index for index, step in enumerate(steps) if "--require-hashes" in step)
    sources = [index for index, step in enumerate(steps) if step.startswith("COPY") and "requirements" not in step]
    assert lock < libraries < min(sources)
    assert not any(name == "ADD" or value.startswith(". ") for name, value in INSTRUCTIONS)


def test_everything_copied_is_there_and_let_through() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for value in values("COPY"):
        if not value.startswith("--from"):
            for source in value.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source in allowed, source


def test_image_holds_all_that_the_wheel_is_built_from() -> None:
    copied = {source for value in values("COPY") if not value.startswith("--from") for source in value.split()[:-1]}
    assert {"pyproject.toml", "README.md", "LICENSE", "migrations", "queue_pg", "api", "workers"} <= copied


# -- docker-compose.yml ------------------------------------------------------------------------------------------------


def test_services_start_in_order() -> None:
    assert set(SERVICES) == {"postgres", *OURS}
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("api", "worker"):
        assert SERVICES[name]["depends_on"] == {
            "postgres": {"condition": "service_healthy"},
            "migrate": {"condition": "service_completed_successfully"},
        }


def test_services_are_watched_limited_and_restarted() -> None:
    for name, service in SERVICES.items():
        limits = service["deploy"]["resources"]["limits"]
        assert float(limits["cpus"]) > 0
        assert re.fullmatch(r"\d+[mg]", limits["memory"])
        if name == "migrate":
            assert service["restart"] == "on-failure:5"
            assert service["healthcheck"] == {"disable": True}
        else:
            assert service["restart"] == "unless-stopped"
            health = service["healthcheck"]
            assert (health["interval"], health["timeout"], health["retries"]) == ("5s", "3s", 5)


def test_services_are_unprivileged() -> None:
    for name in OURS:
        service = SERVICES[name]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True
    for service in SERVICES.values():
        assert not service.get("privileged")
        assert "docker.sock" not in str(service)


def test_postgres_keeps_its_data_and_is_not_published() -> None:
    assert SERVICES["postgres"]["volumes"] == ["postgres-data:/var/lib/postgresql"]
    assert "postgres-data" in COMPOSE["volumes"]
    assert "ports" not in SERVICES["postgres"]
    assert SERVICES["postgres"]["networks"] == ["internal"]
    assert COMPOSE["networks"]["internal"] == {"internal": True}


def test_workers_scale_and_the_api_has_both_ports() -> None:
    assert not {"container_name", "ports", "hostname"} & set(SERVICES["worker"])
    published = [substitute(port, {}) for port in SERVICES["api"]["ports"]]
    assert published == ["127.0.0.1:8000:8000", "127.0.0.1:5000:8000"]
    assert substitute(SERVICES["api"]["ports"][0], {"API_PORT": "9000", "API_BIND": "0.0.0.0"}) == "0.0.0.0:9000:8000"  # noqa: S104


def test_workers_get_time_to_end() -> None:
    worker = SERVICES["worker"]
    assert float(worker["stop_grace_period"].removesuffix("s")) > float(worker["environment"]["GRACE_SECONDS"])


def test_every_variable_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name for field in Settings.model_fields.values() for name in variables(field)}
    for name in OURS:
        environment = SERVICES[name]["environment"]
        assert set(environment) <= known
        with monkeypatch.context() as patch:
            for variable, value in environment.items():
                patch.setenv(variable, substitute(value, {}))
            assert Settings.load(env_file=None).database_url == "postgresql://app:app@postgres:5432/app"


# -- the commands, run -------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(empty_dsn: str) -> dict[str, str]:
    return {**os.environ, "DATABASE_URL": empty_dsn, "HOSTNAME": socket.gethostname()}


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def stack(environment: dict[str, str], port: int, tmp_path: Path) -> Iterator[None]:
    """What `docker compose up` starts, on an empty database and another port."""
    words = {name: [word.replace("8000", str(port)) for word in SERVICES[name]["command"]] for name in OURS}
    subprocess.run([QUEUE_PG, *words["migrate"]], env=environment, cwd=tmp_path, check=True, timeout=60)
    started = [
        subprocess.Popen([QUEUE_PG, *words[name]], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for name in ("api", "worker")
    ]
    try:
        assert started[0].stderr is not None
        assert started[0].stderr.readline().startswith("API on http://")
        yield
    finally:
        for process in started:
            process.terminate()
        ended = [(process.communicate(timeout=60)[1], process.returncode) for process in started]
    assert [status for _, status in ended] == [0, 0], ended


def test_stack_gets_healthy_and_runs_a_job(stack: None, environment: dict[str, str], port: int, tmp_path: Path) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        job = client.post("/jobs", json={"kind": "chat", "payload": {"prompt": "Hello"}}).json()
        # A finished job means that the worker is registered, so the probes below have nothing to wait for.
        assert client.get(f"/jobs/{job['id']}", params={"wait": 30}, timeout=40).json()["state"] == "completed"
    image_check = re.sub(r"^.*?CMD ", "", values("HEALTHCHECK")[0])
    checks = [
        yaml.safe_load(image_check),
        [word.replace("8000", str(port)) for word in SERVICES["api"]["healthcheck"]["test"][1:]],
        ["sh", "-c", substitute(SERVICES["worker"]["healthcheck"]["test"][1], {})],
    ]
    path = f"{QUEUE_PG.parent}{os.pathsep}{os.environ['PATH']}"
    for check in checks:
        done = subprocess.run(
            check,
            env={**environment, "PATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), check


def test_health_checks_fail_when_nothing_is_well(environment: dict[str, str], port: int, tmp_path: Path) -> None:
    path = f"{QUEUE_PG.parent}{os.pathsep}{os.environ['PATH']}"
    checks = [
        ["queue-pg", "doctor", "schema"],
        [word.replace("8000", str(port)) for word in SERVICES["api"]["healthcheck"]["test"][1:]],
        ["sh", "-c", substitute(SERVICES["worker"]["healthcheck"]["test"][1], {})],
    ]
    for check in checks:
        done = subprocess.run(
            check,
            env={**environment, "PATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode != 0, check


def test_image_starts_the_api_unless_told_otherwise() -> None:
    assert values("ENTRYPOINT") == ['["queue-pg"]']
    assert yaml.safe_load(values("CMD")[0]) == SERVICES["api"]["command"]
