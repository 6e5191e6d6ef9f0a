"""What the files under docker/ promise, read without an engine: the ordinary run has this too."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker_engine import FILES, ROOT, VERSION

from bond_cli.vllm.plan import Machine, plan_servers
from bond_cli.vllm.settings import Device, Role, ServerCommand
from bond_core.config import BondConfig, VllmEngineConfig, load_config

STACKS = {
    "cpu": ("compose.stack.yaml", "compose.cpu.yaml"),
    "gpu": ("compose.stack.yaml", "compose.gpu.yaml"),
    "demo": ("compose.yaml",),
}
OURS = ("demo", "gateway", "trainer", "vllm-cpu")
SECRETS = {"POSTGRES_PASSWORD", "BONDSERVE_API_KEY", "GRAFANA_PASSWORD"}
ROLES: dict[str, Role] = {"policy": "policy", "reward": "scorer"}
VARIABLE = re.compile(r"\$\{(\w+)([^}]*)\}")


def text_of(name: str) -> str:
    return (FILES / name).read_text()


def services(name: str) -> dict[str, dict[str, Any]]:
    """The services of a deployment; the files of one share no service."""
    found: dict[str, dict[str, Any]] = {}
    for file in STACKS[name]:
        more = yaml.safe_load(text_of(file))["services"]
        assert not set(more) & set(found)
        found |= more
    return found


def filled(text: str) -> str:
    """Text with the defaults of its variables."""
    return VARIABLE.sub(lambda m: re.sub(r"^:?-", "", m[2]), text)


def dockerfiles() -> list[tuple[str, str]]:
    return [(name, text_of(f"{name}.Dockerfile")) for name in OURS]


@pytest.mark.parametrize("name", STACKS)
def test_services_start_in_an_order_that_exists(name: str) -> None:
    found = services(name)
    for service, its in found.items():
        for other, how in its.get("depends_on", {}).items():
            assert other in found, f"{service} waits for {other}"
            if how["condition"] == "service_healthy":
                ours = found[other]["image"].startswith("bondserve/")  # they check themselves
                assert ours or "test" in found[other]["healthcheck"], other


@pytest.mark.parametrize(("name", "publishes"), [("cpu", "proxy"), ("gpu", "proxy"), ("demo",) * 2])
def test_one_port_is_published_on_this_machine_alone(name: str, publishes: str) -> None:
    ports = {service: its["ports"] for service, its in services(name).items() if "ports" in its}
    assert {service: [filled(p) for p in each] for service, each in ports.items()} == {
        publishes: ["127.0.0.1:8080:8080"]
    }


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_services_are_confined(name: str) -> None:
    for service, its in services(name).items():
        assert its["security_opt"] == ["no-new-privileges:true"], service
        assert not its.get("privileged"), service
        # PostgreSQL's own image changes owner and user at its start; vLLM's official one writes
        if service in ("postgres",) or its["image"].startswith("${BONDSERVE_VLLM_IMAGE"):
            continue
        assert its["read_only"], service
        assert its["cap_drop"] == ["ALL"], service


def test_secrets_have_no_default() -> None:
    for file in sorted(FILES.glob("compose*.yaml")):
        for name, rest in VARIABLE.findall(file.read_text()):
            if name in SECRETS:
                assert rest.startswith(":?"), f"{file.name}: {name}"
            else:
                assert rest.startswith("-") or rest.startswith(":-"), f"{file.name}: {name}"
    written = set(re.findall(r"^([A-Z_]+)=\$?", text_of("new-secrets"), re.MULTILINE))
    assert written == SECRETS


def test_every_setting_is_documented_and_none_that_does_not_exist() -> None:
    document = (ROOT / "docs" / "docker.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z][A-Z_]+)`", document, re.MULTILINE))
    used = {
        name
        for file in FILES.glob("compose*.yaml")
        for name, _ in VARIABLE.findall(file.read_text())
    }
    arguments = {
        name for _, text in dockerfiles() for name in re.findall(r"^ARG (\w+)", text, re.M)
    }
    makes = set(re.findall(r"^(IMAGES|DOCKER_\w+) \?=", (ROOT / "Makefile").read_text(), re.M))
    assert documented == used | arguments | makes
    for service in {service for name in STACKS for service in services(name)}:
        assert f"`{service}`" in document


@pytest.mark.parametrize(("name", "text"), dockerfiles())
def test_dockerfiles_are_for_every_builder_and_for_no_one_s_root(name: str, text: str) -> None:
    assert "ARG BASE_IMAGE=python:3.11-slim-bookworm\n" in text
    assert text.count("FROM ${BASE_IMAGE}") == 2
    assert "--mount" not in text  # BuildKit's alone
    assert "# syntax" not in text
    assert "<<" not in text
    assert text.count("\nUSER 10001:10001\n") == 1
    assert re.search(r'^ENTRYPOINT \["', text, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*\\?\n?.*CMD \[", text, re.MULTILINE)
    assert 'org.opencontainers.image.title="bondserve' in text


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
    for name, text in dockerfiles():
        assert re.findall(r'image\.version="([^"]+)"', text) == [VERSION], name
    for file in FILES.glob("compose*.yaml"):
        defaults = set(re.findall(r"BONDSERVE_VERSION:-([^}]+)", file.read_text()))
        assert defaults <= {VERSION}, file.name


@pytest.fixture
def config() -> BondConfig:
    """What gateways and trainer read, with the models of the demo world in their places."""
    environ = {"BOND_MODEL__NAME": "demo", "BOND_STORE__URL": "postgresql://bond:x@postgres/bond"}
    loaded = load_config(FILES / "config" / "bond.yaml", environ=environ)
    assert str(loaded.model.path) == "/models/policy"
    world = ROOT / "demo" / "bond_demo" / "world"
    assert loaded.scorer.type == "pooling"
    assert str(loaded.scorer.path) == "/models/reward"
    model = loaded.model.model_copy(update={"path": world / "policy"})
    scorer = loaded.scorer.model_copy(update={"path": world / "proxy"})
    return loaded.model_copy(update={"model": model, "scorer": scorer})


def planned(config: BondConfig, device: Device) -> dict[str, ServerCommand]:
    on = Machine(python="python", device=device, first_port=8000, num_gpus=1, num_cpus=1)
    return {server.role: server for server in plan_servers(config, on)}


def flags_of(words: list[str]) -> dict[str, list[str]]:
    """A command line as flags with their words, without what a container changes."""
    flags: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            flags[word] = []
        elif flags:
            flags[list(flags)[-1]].append(word)
    changed = ("--model", "--served-model-name", "--host", "--port")
    return {flag: its for flag, its in flags.items() if flag not in changed}


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("service", ROLES)
def test_servers_are_started_as_bond_vllm_says(
    config: BondConfig, device: Device, service: str
) -> None:
    plan = planned(config, device)[ROLES[service]]
    its = services(device)[service]
    words = filled(its["command"]).split()
    assert flags_of(words) == flags_of([word for flag in plan.flags for word in flag.words])
    model = words[0] if device == "gpu" else words[words.index("--model") + 1]
    assert model == f"/models/{service}"
    assert its.get("entrypoint") == (["vllm", "serve"] if device == "gpu" else None)
    assert words[words.index("--served-model-name") + 1] == service
    environ = {name: filled(value) for name, value in its["environment"].items()}
    if device == "cpu":
        image = text_of("vllm-cpu.Dockerfile").replace("\\\n", " ")
        *_, line = re.findall(r"^ENV (.*)$", image, re.MULTILINE)
        environ = dict(pair.split("=", 1) for pair in line.split()) | environ
    wanted = {k: v for k, v in plan.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    assert {name: environ.get(name) for name in wanted} == wanted


def test_gateways_and_servers_have_the_names_of_the_configuration(config: BondConfig) -> None:
    assert isinstance(config.engine, VllmEngineConfig)
    assert config.engine.urls == ("http://policy:8000",)
    assert config.engine.model_name == "policy"
    assert getattr(config.scorer, "url", None) == "http://reward:8000"
    assert config.store.durability == "power"
    assert {"policy", "reward", "postgres"} < set(services("cpu"))


def test_the_proxy_bounds_what_the_gateway_bounds(config: BondConfig) -> None:
    text = text_of("nginx/nginx.conf")

    def value(name: str, unit: str) -> list[int]:
        return [int(n) for n in re.findall(rf"^\s*{name} (\d+){unit};", text, re.MULTILINE)]

    assert [n * 2**20 for n in value("client_max_body_size", "m")] == [config.access.max_body_bytes]
    assert isinstance(config.engine, VllmEngineConfig)
    scorer_s = getattr(config.scorer, "timeout_s", 0.0)
    longest_s = (
        config.admission.max_wait_s
        + config.engine.timeout_s
        + scorer_s
        + config.store.commit_timeout_s
    )
    assert value("proxy_read_timeout", "s")[0] > longest_s >= 370
    assert min(value("keepalive_timeout", "s")) < 5  # uvicorn closes idle connections then
    assert value("limit_conn all", "")[0] < config.admission.max_requests
    assert value("worker_shutdown_timeout", "s")[0] > config.server.shutdown_grace_s
    assert "proxy_buffering off;" in text
    # a POST that was sent is never sent again
    retried = re.findall(r"^\s*proxy_next_upstream (.*);", text, re.MULTILINE)
    assert retried == ["error timeout"]


def test_bodies_on_their_way_have_bounded_memory_and_one_address_not_all_places() -> None:
    text = text_of("nginx/nginx.conf")
    [(all_of_them, of_one)] = re.findall(r"limit_conn all (\d+);\s*limit_conn each (\d+);", text)
    assert 3 * int(of_one) == int(all_of_them)
    [place] = services("cpu")["proxy"]["tmpfs"]
    assert re.fullmatch(r"/tmp:mode=1777,size=256m", place)
    for path in re.findall(r"_temp_path (\S+);", text):
        assert path.startswith("/tmp/")


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_every_service_that_stays_is_checked(name: str) -> None:
    """Ours are by their images; the others by programs of theirs."""
    programs: dict[str, str] = {}
    for service, its in services(name).items():
        check = its.get("healthcheck", {})
        if "test" in check:
            programs[service] = check["test"][1].split()[0]
        elif its["image"].startswith("bondserve/"):
            ends = its.get("restart") == "no"
            assert check == ({"disable": True} if ends else {}), service
        else:
            pytest.fail(f"nobody looks at {service}")
    vllm = dict.fromkeys(ROLES, "curl") if name == "gpu" else {}
    assert programs == vllm | {
        "proxy": "curl",
        "postgres": "pg_isready",
        "prometheus": "promtool",
        "grafana": "wget",
    }


def test_a_place_that_sets_a_header_sets_the_others_again() -> None:
    """One `proxy_set_header` drops all that the levels above have set."""
    text = text_of("nginx/nginx.conf")
    outer = set(re.findall(r"^ {8}proxy_set_header (\S+)", text, re.MULTILINE))
    assert {"Host", "Connection", "X-Forwarded-For"} <= outer
    for block in re.findall(r"^ {8}location [^{]*{\n(.*?)^ {8}}", text, re.MULTILINE | re.DOTALL):
        inner = set(re.findall(r"proxy_set_header (\S+)", block))
        assert not inner or outer <= inner


@pytest.mark.parametrize("name", STACKS)
def test_an_image_of_ours_is_built_once_and_never_pulled(name: str) -> None:
    ours = {s: its for s, its in services(name).items() if its["image"].startswith("bondserve/")}
    builders = [its["image"] for its in ours.values() if "build" in its]
    assert sorted(builders) == sorted({its["image"] for its in ours.values()})
    for its in ours.values():
        assert its["pull_policy"] == ("build" if "build" in its else "never")


def test_the_programs_of_a_backup_are_as_new_as_the_database() -> None:
    """Debian's PostgreSQL, in the trainer's image, is of the same release as the server's image."""
    server = filled(services("cpu")["postgres"]["image"])
    base = filled(services("cpu")["trainer"]["build"]["args"]["BASE_IMAGE"])
    assert server == "postgres:15-bookworm"  # which has 15
    assert base.endswith("-bookworm")
    assert "postgresql-client" in text_of("trainer.Dockerfile")
    tools = services("cpu")["tools"]
    assert tools["image"] == services("cpu")["trainer"]["image"]
    assert tools["profiles"] == ["tools"]  # `up` does not start it
    assert set(services("cpu")["trainer"]["volumes"]) < set(tools["volumes"])


def test_running_requests_have_their_grace_before_docker_kills(config: BondConfig) -> None:
    for name in ("gateway-a", "gateway-b"):
        grace_s = int(services("cpu")[name]["stop_grace_period"].removesuffix("s"))
        assert 30 <= config.server.shutdown_grace_s <= grace_s - 10


def test_prometheus_asks_services_where_they_listen(config: BondConfig) -> None:
    jobs = yaml.safe_load(text_of("prometheus/prometheus.yml"))["scrape_configs"]
    targets = {t for job in jobs for group in job["static_configs"] for t in group["targets"]}
    metrics = config.access.metrics_port
    assert config.access.metrics_host == "0.0.0.0"
    assert targets == {
        f"gateway-a:{metrics}", f"gateway-b:{metrics}", "policy:8000", "reward:8000",
        "localhost:9090",
    }  # fmt: skip


def test_grafana_finds_its_source_and_its_dashboards() -> None:
    grafana = services("cpu")["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    [sources] = Path(FILES / "grafana/provisioning/datasources").glob("*.yaml")
    [source] = yaml.safe_load(sources.read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [providers] = Path(FILES / "grafana/provisioning/dashboards").glob("*.yaml")
    [provider] = yaml.safe_load(providers.read_text())["providers"]
    assert provider["options"]["path"] == mounts["./grafana/dashboards"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert json.loads(text_of("grafana/dashboards/bondserve.json"))["panels"]


def test_gpus_are_reserved_for_the_model_servers() -> None:
    for service, its in services("gpu").items():
        reserved = its.get("deploy", {}).get("resources", {}).get("reservations", {})
        if service not in ROLES:
            assert not reserved
            continue
        [device] = reserved["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert filled(its["image"]) == "vllm/vllm-openai:v0.32.0"
