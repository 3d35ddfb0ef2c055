"""What installs and ships: dependency groups, the wheel, the images, and an import that stays at home."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from app.memory import needed_mb
from app.settings import Settings

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["caption"]
GPU = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())["services"]["caption"]
KEYS = yaml.safe_load((ROOT / "docker-compose.keys.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def requirements(group: str | None) -> list[Requirement]:
    """The direct requirements of a dependency group, groups it names included; None for the base."""
    lines = PROJECT["dependencies"] if group is None else EXTRAS[group]
    found = []
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            found += [inner for extra in requirement.extras for inner in requirements(extra)]
        else:
            found.append(requirement)
    return found


def constraints() -> dict[str, Version]:
    pins = map(Requirement, (ROOT / "constraints.txt").read_text().splitlines()[1:])
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in pins}


def closure(roots: list[Requirement]) -> set[str]:
    """Every package that installing `roots` brings, by the metadata of what is installed here."""
    seen: set[tuple[str, str]] = set()
    todo = [(canonicalize_name(r.name), extra) for r in roots for extra in ("", *r.extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for requirement in map(Requirement, metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(requirement.name), e) for e in ("", *requirement.extras)]
    return {name for name, _ in seen}


def test_the_groups_people_are_told_to_install_exist() -> None:
    assert {"serve", "gpu", "train", "test"} <= set(EXTRAS)


@pytest.mark.parametrize("group", [None, *EXTRAS])
def test_every_requirement_is_pinned_within_its_range(group: str | None) -> None:
    pins = constraints()
    for requirement in requirements(group):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_serving_and_testing_bring_only_pinned_packages() -> None:
    unpinned = closure(requirements(None) + requirements("serve") + requirements("test")) - set(constraints())
    # Their versions are fixed by torch's own exact requirements.
    assert {name for name in unpinned if not name.startswith(("nvidia-", "cuda-", "triton"))} == set()


def test_what_is_installed_here_is_what_is_pinned() -> None:
    pins = constraints()
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]  # sys.path may hold what a package vendors
    installed = {canonicalize_name(d.name): d.version for d in metadata.distributions(path=folders)}
    differ = {
        name: version for name, version in installed.items() if name in pins and version not in _exactly(pins[name])
    }
    assert differ == {}


def _exactly(version: Version) -> SpecifierSet:
    return SpecifierSet(f"=={version}")  # a local part, as in 2.13.0+cpu, makes no difference


def test_serving_brings_no_training_framework() -> None:
    assert not closure(requirements(None) + requirements("serve")) & {"torch", "torchvision", "tensorflow", "jax"}


def test_the_wheel_holds_the_model_the_page_and_the_recipes(tmp_path: Path) -> None:
    for name in ("app", "caption_client", "model", "training"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    (tmp_path / "caption_client" / "build" / "lib").mkdir(parents=True)  # what building the client alone leaves
    (tmp_path / "caption_client" / "build" / "lib" / "old.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-WEIGHTS"):
        shutil.copy(ROOT / name, tmp_path)
    shipped = {
        str(path.relative_to(tmp_path))
        for folder in ("app/static", "model/weights", "training")
        for path in (tmp_path / folder).rglob("*")
        if path.is_file()
    }
    wheel = build(tmp_path)
    names = set(wheel.namelist())
    assert shipped
    assert shipped <= names
    assert {"app/__main__.py", "model/runtime/openvino_engine.py", "training/loop.py"} <= names
    assert {f"{name}/py.typed" for name in ("app", "caption_client", "model", "training")} <= names
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "LICENSE-WEIGHTS"}
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "app", "caption_client", "model", "training",
    }  # fmt: skip
    assert not [name for name in names if "build/" in name]
    [about] = [wheel.read(name).decode() for name in names if name.endswith("METADATA")]
    assert "License-Expression: Apache-2.0 AND LicenseRef-Flickr8k-Non-Commercial\n" in about


def build(folder: Path) -> zipfile.ZipFile:
    """The wheel of the project in `folder`."""
    code = "import setuptools.build_meta as b; b.build_wheel('dist')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=folder, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(wheel)


ALONE = """
import sys
sys.path[:] = [path for path in sys.path if not path.endswith("-packages")] + [sys.argv[1]]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
class OnlyHttpx:
    allowed = {"anyio", "caption_client", "certifi", "h11", "httpcore", "httpx", "idna", "sniffio", "typing_extensions"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in sys.stdlib_module_names | self.allowed:
            raise ModuleNotFoundError(f"no {name}", name=name)
sys.meta_path.insert(0, OnlyHttpx())
sys.path += sys.argv[2:]
from caption_client import CaptionClient, cli
assert cli.__file__.startswith(sys.argv[1])
assert cli.main(["a.jpg", "--server", "http://127.0.0.1:9"]) == cli.USAGE
assert cli.main(["a.jpg"]) == cli.USAGE
"""


def test_the_client_installs_and_runs_with_httpx_alone(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "caption_client", tmp_path / "source", ignore=shutil.ignore_patterns("__pycache__", "build"))
    wheel = build(tmp_path / "source")
    wheel.extractall(tmp_path / "site")
    (tmp_path / "a.jpg").touch()
    [about] = (tmp_path / "site").glob("*.dist-info/METADATA")
    lines = about.read_text().splitlines()
    needed = [line for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert needed == ["Requires-Dist: httpx>=0.28"]
    assert f"Version: {PROJECT['version']}" in lines
    assert {"caption_client/py.typed", "caption_client/cli.py"} <= set(wheel.namelist())
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    packages = sysconfig.get_path("purelib")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "site"), packages],
        cwd=tmp_path, env={**os.environ, "NO_PROXY": "*"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no answer" in done.stderr
    assert "needs the model" in done.stderr


def test_compose_serves_on_the_cpu_unless_the_gpu_file_is_named() -> None:
    assert "deploy" not in COMPOSE
    (device,) = GPU["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert "gpu" in device["capabilities"]
    assert "profiles" not in COMPOSE | GPU  # with which `docker compose stop` would forget it
    assert "docker-compose.yml:docker-compose.gpu.yml" in (ROOT / ".env.example").read_text()


def test_a_container_can_do_little_and_ends_cleanly() -> None:
    assert COMPOSE["read_only"] is True
    assert COMPOSE["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in COMPOSE["security_opt"]
    assert {"cpu_quota", "mem_limit", "memswap_limit", "pids_limit"} <= COMPOSE.keys() & GPU.keys()
    assert "cpus" not in COMPOSE | GPU  # which refuses more than the host has
    assert COMPOSE["healthcheck"]["interval"]
    assert all("127.0.0.1" in port for port in COMPOSE["ports"])  # reachable from this machine only
    settings = Settings()
    assert float(COMPOSE["stop_grace_period"].removesuffix("s")) > settings.drain_delay + settings.grace


def test_the_memory_limit_is_what_the_default_settings_need() -> None:
    cpus = int(re.fullmatch(r"\$\{CPUS:-(\d+)\}0{5}", COMPOSE["cpu_quota"])[1])  # type: ignore[index]
    limit = f"${{MEMORY:-{needed_mb(Settings(), cpus)}m}}"
    assert (COMPOSE["mem_limit"], COMPOSE["memswap_limit"]) == (limit, limit)


def test_containers_set_only_settings_that_exist() -> None:
    known = {f"CAPTION_{name.upper()}" for name in Settings.model_fields}
    used = set(re.findall(r"^\s+(CAPTION_\w+)=", DOCKERFILE, re.M)) | set(
        re.findall(r"^ENV (CAPTION_\w+)", DOCKERFILE, re.M)
    )
    used |= {
        name.partition("=")[0] for service in (COMPOSE, KEYS["services"]["caption"]) for name in service["environment"]
    }
    used |= set(re.findall(r"^#(CAPTION_\w+)=", (ROOT / ".env.example").read_text(), re.M))
    assert used
    assert used <= known


def test_every_setting_of_an_env_file_reaches_the_service_and_git_ignores_it() -> None:
    assert COMPOSE["env_file"] == [{"path": ".env", "required": False}]
    assert "/.env" in (ROOT / ".gitignore").read_text().splitlines()
    # What the file holds for Compose alone is no CAPTION_ variable, which the service would not know.
    compose = (ROOT / "docker-compose.yml").read_text() + (ROOT / "docker-compose.gpu.yml").read_text()
    assert set(re.findall(r"\$\{(\w+)", compose)) == {"PUBLISH", "CPUS", "MEMORY"}


def test_keys_can_be_a_docker_secret() -> None:
    service = KEYS["services"]["caption"]
    [name] = service["secrets"]
    assert service["environment"] == [f"CAPTION_API_KEYS_FILE=/run/secrets/{name}"]
    file = KEYS["secrets"][name]["file"].removeprefix(".")
    assert file in (ROOT / ".gitignore").read_text().splitlines()
    assert "docker-compose.yml:docker-compose.keys.yml" in (ROOT / ".env.example").read_text()


def test_what_people_set_on_the_command_line_reaches_the_service() -> None:
    assert {"CAPTION_API_KEYS", "CAPTION_ALLOWED_HOSTS"} <= set(COMPOSE["environment"])


@pytest.mark.parametrize("group", [None, "serve", "gpu", "ray"])
def test_images_install_the_requirements_of_the_project(group: str | None) -> None:
    command = [sys.executable, "scripts/requirements.py", *([group] if group else [])]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = requirements(None) + (requirements(group) if group else [])
    assert {str(Requirement(line)) for line in printed} == {str(requirement) for requirement in wanted}


@pytest.mark.parametrize("name", ["fastapi-offline", "starlette", "uvicorn"])
def test_what_we_use_private_parts_of_is_capped(name: str) -> None:
    [requirement] = [r for r in requirements(None) if r.name == name]
    assert any(specifier.operator == "<" for specifier in requirement.specifier)


def test_images_are_built_for_every_compose_target_and_run_without_root() -> None:
    stages = dict(re.findall(r"^FROM .* AS (\S+)\n((?:(?!^FROM ).*\n?)*)", DOCKERFILE, re.M))
    assert {service["build"]["target"] for service in (COMPOSE, GPU)} <= set(stages)
    assert list(stages)[-1] == "cpu"  # what a plain `docker build .` makes
    assert re.search(r"^USER 10001:10001$", stages["runtime"], re.M)  # numbers: Kubernetes checks them
    assert "groupadd --system --gid 10001" in stages["runtime"]
    assert f'image.version="{PROJECT["version"]}"' in stages["runtime"]
    assert f'image.licenses="{PROJECT["license"]}"' in stages["runtime"]
    assert not re.search(r"^# *syntax=", DOCKERFILE, re.M)  # which would ask a registry
    assert "HEALTHCHECK" in stages["runtime"]
    assert "USER" not in stages["cpu"] + stages["gpu"]
    assert re.findall(r"^USER (.*)", stages["ray"], re.M)[-1] == "10001:10001"


def test_the_build_context_holds_what_the_dockerfile_copies_and_nothing_of_git() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert "README.md" not in let_in  # a word in it must not install the packages again
    copied = {
        word
        for line in re.findall(r"^COPY (?!.*--from)(.*)$", DOCKERFILE, re.M)
        for word in line.split()[:-1]
        if not word.startswith("--")
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in let_in)
    assert not any(fnmatch(".git", name) for name in let_in)


@pytest.mark.parametrize(
    "script",
    [
        "serve",
        "test",
        "train",
        "lint",
        "bench",
        "venv",
        "build-images",
        "audit",
        "bench-gpu",
        "gpu-train",
    ],
)
def test_scripts_can_be_run(script: str) -> None:
    assert os.access(ROOT / "scripts" / script, os.X_OK)


def test_uv_is_told_what_pip_is_configured_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import uv_pip

    listed = """
:env:.find-links='/a'
global.cert='/c.pem'
global.extra-index-url='https://one/simple\\nhttps://two/simple'
global.find-links='/b /c'
global.no-color='true'
install.index-url='https://me:secret=@three/simple'
"""
    assert uv_pip.settings(listed) == {
        "SSL_CERT_FILE": "/c.pem",
        "UV_DEFAULT_INDEX": "https://me:secret=@three/simple",
        "UV_FIND_LINKS": "/a",
        "UV_INDEX": "https://one/simple https://two/simple",
    }


STAY_AT_HOME = """
import os
import sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "os.fork", "subprocess.Popen"):
        print(event, arguments, file=sys.stderr, flush=True)
        os._exit(3)  # not an exception: the culprit may be in a thread, or swallow it

sys.addaudithook(watch)
from pathlib import Path
import numpy as np
import app.main
from model.runtime import load_engine

engine = load_engine(Path("model/weights/default"), device="cpu")
size = engine.config.preprocess.size
assert engine.caption(np.zeros((1, size, size, 3), np.uint8))[0][0].text
print(*[name for name in ("torch", "torchvision", "openvino_telemetry") if sys.modules.get(name)])
"""


def test_loading_and_captioning_reach_nothing_outside_and_import_no_torch(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CI"}  # OpenVINO is silent in CI
    environment["HOME"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", STAY_AT_HOME], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
    assert list(tmp_path.iterdir()) == []
