"""The dashboard asks for what a real Ray exports, names and labels as Prometheus sees them."""

import json
import re
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from dgn.cluster.metrics import Metrics
from dgn.jobs.common.flags import load_settings
from dgn.jobs.render import render
from dgn.runs.config import RunConfig
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.conftest import WIDTH

DASHBOARD = json.loads((Path(__file__).parent.parent.parent / "cluster" / "grafana.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def exported():
    """{name: {label: values}} of dgn's samples on this Ray's metrics port."""
    [node] = [node for node in ray.nodes() if node["Alive"]]
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found = defaultdict(lambda: defaultdict(set))
    for sample in (sample for family in families for sample in family.samples):
        if sample.name.startswith("ray_dgn_"):
            for label, value in sample.labels.items():
                found[sample.name][label].add(value)
    return found


@pytest.fixture(scope="module")
def samples(tmp_path_factory, local_ray):
    """The metrics of a small run, and those that only long or unlucky runs report, reported here for the same run."""
    folder = tmp_path_factory.mktemp("run") / "r"
    settings = {"targets": ["classes:0-1"], "discriminator": "vgg16-mini", "width": WIDTH, "updates": 3, "views": 1,
                "workers": "1"}  # fmt: skip
    render(str(folder), load_settings(RunConfig, None, settings))
    run_id = Run(open_store(str(folder))).info().run_id
    metrics = Metrics(run_id)
    metrics.note_storage_retry("read", OSError())
    metrics.attempts_failed.inc(tags={"cause": "machine"})
    metrics.picture_seconds.observe(2.0, {"mode": "untrained", "layer": "fc8"})  # a worker reports every 10 s
    metrics.device_memory.set(1e9, {"device": "cpu"})
    for _ in range(120):
        found = exported()
        if len({re.sub(r"_(bucket|sum|count|total)$", "", name) for name in found}) == len(vars(metrics)):
            return run_id, found
        time.sleep(0.5)
    raise AssertionError(f"Ray exported only {sorted(found)}")


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_names_what_ray_exports(expression, samples):
    run_id, found = samples
    selectors = re.findall(r"(ray_dgn_\w+)\{([^}]*)\}", expression)
    assert len(selectors) == len(re.findall(r"ray_\w+", expression)) > 0
    labels_of_all = set.intersection(*(set(found[name]) for name, _ in selectors))
    for name, matchers in selectors:
        assert name in found
        for label, operator, value in re.findall(r'(\w+)(=~?)"([^"]*)"', matchers):
            assert operator == "=~" or value.replace("$run", run_id) in found[name][label]
            assert operator == "=" or set(value.split("|")) <= found[name][label]
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert set(group.split(", ")) <= labels_of_all


def test_every_metric_is_shown(samples):
    _, found = samples
    shown = {name for expression in EXPRESSIONS for name in re.findall(r"ray_dgn_\w+", expression)}
    assert {re.sub(r"_(sum|count)$", "_bucket", name) for name in found} == shown


def test_the_legends_name_labels_that_are_left():
    for target in (target for panel in DASHBOARD["panels"] for target in panel["targets"]):
        left = {label for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(", ")}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == left - {"le"} or not target["legendFormat"]


def test_it_can_be_imported():
    """What Grafana's import and two dashboards in one Grafana need."""
    assert DASHBOARD["schemaVersion"] >= 38
    assert "ray metrics launch-prometheus" in DASHBOARD["description"]
    datasource, run = DASHBOARD["templating"]["list"]
    assert (datasource["type"], datasource["query"]) == ("datasource", "prometheus")
    assert (run["name"], run["query"]["query"]) == ("run", "label_values(ray_dgn_shards, run)")
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["fieldConfig"]["defaults"]["unit"]
        uses = [panel["datasource"], *(target["datasource"] for target in panel["targets"]), run["datasource"]]
        assert uses == [{"type": "prometheus", "uid": "${datasource}"}] * len(uses)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24
