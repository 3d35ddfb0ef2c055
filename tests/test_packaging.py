"""What installs and ships: dependency groups, the wheel, the images, and an import that stays at home."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from app.settings import Settings

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
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
    installed = {canonicalize_name(d.name): d.version for d in metadata.distributions()}
    differ = {
        name: version for name, version in installed.items() if name in pins and version not in _exactly(pins[name])
    }
    assert differ == {}


def _exactly(version: Version) -> SpecifierSet:
    return SpecifierSet(f"=={version}")  # a local part, as in 2.13.0+cpu, makes no difference


def test_serving_brings_no_training_framework() -> None:
    assert not closure(requirements(None) + requirements("serve")) & {"torch", "torchvision", "tensorflow", "jax"}


def test_the_wheel_holds_the_model_the_page_and_the_recipes(tmp_path: Path) -> None:
    for name in ("app", "model", "training"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shipped = {
        str(path.relative_to(tmp_path))
        for folder in ("app/static", "model/weights", "training/recipes")
        for path in (tmp_path / folder).rglob("*")
        if path.is_file()
    }
    code = "import setuptools.build_meta as b; b.build_wheel('dist')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert shipped
    assert shipped <= names
    assert {"app/__main__.py", "model/runtime/openvino_engine.py", "training/train.py"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests")]


def test_compose_serves_on_the_cpu_unless_asked_for_the_gpu() -> None:
    assert [name for name, service in COMPOSE["services"].items() if "profiles" not in service] == ["cpu"]
    (device,) = COMPOSE["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert "gpu" in device["capabilities"]


@pytest.mark.parametrize("service", COMPOSE["services"].values(), ids=list(COMPOSE["services"]))
def test_a_container_can_do_little_and_ends_cleanly(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    assert service["healthcheck"]["interval"]
    assert all("127.0.0.1" in port for port in service["ports"])  # reachable from this machine only
    settings = Settings()
    assert float(service["stop_grace_period"].removesuffix("s")) > settings.drain_delay + settings.grace


def test_containers_set_only_settings_that_exist() -> None:
    known = {f"CAPTION_{name.upper()}" for name in Settings.model_fields}
    used = set(re.findall(r"^\s+(CAPTION_\w+)=", DOCKERFILE, re.M)) | set(
        re.findall(r"^ENV (CAPTION_\w+)", DOCKERFILE, re.M)
    )
    for service in COMPOSE["services"].values():
        used |= set(service["environment"])
    assert used
    assert used <= known


def test_images_are_built_for_every_compose_target_and_run_without_root() -> None:
    stages = dict(re.findall(r"^FROM .* AS (\S+)\n((?:(?!^FROM ).*\n?)*)", DOCKERFILE, re.M))
    assert {service["build"]["target"] for service in COMPOSE["services"].values()} <= set(stages)
    assert list(stages)[-1] == "cpu"  # what a plain `docker build .` makes
    assert re.search(r"^USER [1-9]\d*$", stages["runtime"], re.M)  # a number: Kubernetes checks it
    assert "HEALTHCHECK" in stages["runtime"]
    assert "USER" not in stages["cpu"] + stages["gpu"]


def test_the_build_context_holds_what_the_dockerfile_copies_and_nothing_of_git() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!.*--from)(.*)$", DOCKERFILE, re.M)
        for word in line.split()[:-1]
        if not word.startswith("--")
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in let_in)
    assert not any(fnmatch(".git", name) for name in let_in)


@pytest.mark.parametrize("script", ["serve", "test", "train", "lint", "bench", "venv"])
def test_scripts_can_be_run(script: str) -> None:
    assert os.access(ROOT / "scripts" / script, os.X_OK)


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
