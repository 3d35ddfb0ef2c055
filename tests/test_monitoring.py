"""The dashboard asks for metrics and labels that the service exports, and Compose starts what shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from app.metrics import Metrics

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana" / "dashboards" / "captions.json").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
OURS = re.compile(r"\$\{prefix\}(caption_\w+)")


def exported() -> dict[str, set[str]]:
    """The name of each sample, and its labels."""
    found: dict[str, set[str]] = {}
    for instrument in vars(Metrics()).values():
        if isinstance(instrument, MetricWrapperBase):
            labels = set(instrument._labelnames)
            for family in instrument.describe():
                endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
                for ending in endings:
                    found[family.name + ending] = labels | ({"le"} if ending == "_bucket" else set())
    return found


def test_exported_samples_are_those_that_prometheus_would_read() -> None:
    text = Metrics().render().decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE caption_")}
    assert {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in exported()} >= {
        name for name in names if not name.endswith("_created")
    }


@pytest.mark.parametrize("query", QUERIES)
def test_a_panel_asks_for_what_is_exported(query: str) -> None:
    known = exported()
    names = OURS.findall(query) or re.findall(r"process_\w+", query)
    assert names
    for name in names:
        assert name in known or name in Metrics().render().decode(), name
    labels = {label for part in re.findall(r"by \(([^)]*)\)", query) for label in part.split(", ")}
    labels |= {label for part in re.findall(r"\{(\w+)[=!~]", query) for label in [part]} - {"job"}
    for name in OURS.findall(query):
        assert labels <= known[name], (name, labels)
    assert not re.search(r"(?<!\})\bcaption_", query)  # without the prefix, which Ray's have


def test_the_dashboard_shows_what_matters() -> None:
    shown = set(OURS.findall(" ".join(QUERIES)))
    assert shown >= {
        "caption_admitted_pictures", "caption_stage_duration_seconds_bucket", "caption_rejected_total",
        "caption_decoders_ended_total",
    }  # fmt: skip
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids)) == len(set(places))
    [prefix] = DASHBOARD["templating"]["list"]
    assert [option["value"] for option in prefix["options"]] == ["", "ray_"]


def service(name: str) -> dict[str, Any]:
    made: dict[str, Any] = COMPOSE["services"][name]
    return made


def test_compose_starts_it_only_when_asked_and_shows_it_to_this_machine_alone() -> None:
    for name in ("prometheus", "grafana"):
        assert service(name)["profiles"] == ["monitoring"]
        assert service(name)["read_only"] is True
        assert service(name)["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service(name).get("ports", []))
        for volume in service(name)["volumes"]:
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_what_is_provisioned_fits_together() -> None:
    [scraped] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    port = next(v.partition("=")[2] for v in service("caption")["environment"] if v.startswith("CAPTION_PORT="))
    assert scraped["static_configs"] == [{"targets": [f"caption:{port}"]}]
    provisioning = FOLDER / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    [provider] = yaml.safe_load((provisioning / "dashboards" / "captions.yml").read_text())["providers"]
    assert any(volume.split(":")[1] == provider["options"]["path"] for volume in service("grafana")["volumes"])
