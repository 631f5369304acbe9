"""The files in cluster/, checked without a cloud: Ray's own schema, KubeRay's, and what they name must exist."""

import copy
import json
import os
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml

from stssl.recipes.recipe import load_training_recipe
from stssl.recipes.sections import LaunchConfig
from stssl.training.ray_metrics import EXPORTED, VALIDATION

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILES = [path for path in CLUSTER.rglob("*") if path.is_file()]
MANIFESTS = {"kuberay-job.yaml": "ray.io_rayjobs.yaml", "kuberay-cluster.yaml": "ray.io_rayclusters.yaml"}


def read(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def ray_version():
    return re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def accepted_by_ray(config):
    """Whether `ray up` takes it: defaults filled in and validated by Ray's own functions."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except (jsonschema.ValidationError, ValueError, KeyError):
        return False
    return True


def test_ray_up_takes_the_file():
    config = read("aws.yaml")
    assert accepted_by_ray(config)
    assert config["head_node_type"] in config["available_node_types"]
    assert config["max_workers"] >= max(kind.get("max_workers", 0) for kind in config["available_node_types"].values())


def test_ray_up_starts_spot_instances_first():
    kinds = read("aws.yaml")["available_node_types"]
    spot = {name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"gpu_spot"} and kinds["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert kinds["gpu_spot"]["priority"] > kinds["gpu"].get("priority", 0)
    others = {key: value for key, value in kinds["gpu_spot"]["node_config"].items() if key != "InstanceMarketOptions"}
    assert others == kinds["gpu"]["node_config"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_wrokers", 4), ("max_workers", "many"), ("available_node_types", {"head": {"resource": {}}})],
)
def test_control_ray_refuses_broken_files(key, value):
    assert not accepted_by_ray(read("aws.yaml") | {key: value})


def schema(name):
    """The schema of a custom resource from the folder STSSL_SCHEMAS, unknown keys refused."""
    folder = os.environ.get("STSSL_SCHEMAS")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip(f"STSSL_SCHEMAS names no folder with {name}")
    return resource_schema(Path(folder) / name)


@cache
def resource_schema(path):
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(path.read_text(), Loader=loader)["spec"]["versions"]  # a safe loader, the fast one
    (found,) = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    rules = closed(found)
    rules["properties"]["metadata"] = {"type": "object"}
    return rules


def closed(part):
    """Kubernetes drops keys that it does not know; a test must refuse them."""
    if isinstance(part, list):
        return [closed(item) for item in part]
    if not isinstance(part, dict):
        return part
    known = {key: closed(value) for key, value in part.items()}
    open_part = part.get("x-kubernetes-preserve-unknown-fields") or part.get("x-kubernetes-embedded-resource")
    named = isinstance(part.get("properties"), dict) and part.get("type") == "object"
    if named and not open_part and "additionalProperties" not in part:
        known["additionalProperties"] = False
    return known


def problems(manifest, rules):
    return [error.message for error in jsonschema.Draft202012Validator(rules).iter_errors(manifest)]


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_takes_the_manifests(name):
    assert problems(read(name), schema(MANIFESTS[name])) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entrypont"), "true"),
        (("spec", "backoffLimit"), "two"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "4"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "password"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "imagee"), "x"),
    ],
)
def test_control_broken_manifests_are_refused(path, value):
    rules, manifest = schema("ray.io_rayjobs.yaml"), read("kuberay-job.yaml")
    part = manifest
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert problems(manifest, rules)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_agree_with_themselves_and_with_the_constraints(name):
    spec = read(name)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    assert cluster["rayVersion"] == ray_version()
    assert cluster["authOptions"] == {"mode": "token"}
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes
        assert "dashboard-host" not in group["rayStartParams"]


def test_the_job_names_a_recipe_that_exists(monkeypatch):
    monkeypatch.setenv("BIGEARTHNET", "/shared/bigearthnet.zarr")
    monkeypatch.setenv("USB_VIT_S16", "/shared/vit.pth")
    spec = read("kuberay-job.yaml")["spec"]
    stssl, command, recipe, *overrides = shlex.split(spec["entrypoint"])
    assert (stssl, command) == ("stssl", "train")
    loaded = load_training_recipe(ROOT / Path(recipe).relative_to("/home/ray/stssl"), overrides)
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert loaded.launch.workers == group["replicas"]
    assert loaded.launch.gpus_per_worker <= float(limits["nvidia.com/gpu"])
    assert loaded.launch.cpus_per_worker <= float(limits["cpu"])


def copied(dockerfile):
    """Paths that a Dockerfile copies out of the repository."""
    for line in dockerfile.splitlines():
        if line.startswith("COPY "):
            yield from [word for word in line.split()[1:-1] if not word.startswith("--")]


def test_the_image_copies_what_exists():
    text = (CLUSTER / "Dockerfile").read_text()
    names = list(copied(text))
    assert {"pyproject.toml", "constraints.txt", "stssl", "experiments"} <= set(names)
    assert [name for name in names if not (ROOT / name).exists()] == []
    (extras,) = re.findall(r"'\.\[(.+)\]'", text)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) == set(known) - {"dev", "docs"}
    assert "RAY_AUTH_MODE=token" in text and re.search(r"^USER (?!root)", text, re.MULTILINE)
    assert re.search(r"^FROM python:3\.1[1-9]", text, re.MULTILINE)


def test_control_a_missing_file_is_seen():
    assert list(copied("COPY --chown=ray nowhere.txt stssl ./")) == ["nowhere.txt", "stssl"]


def asked_of_prometheus(dashboard):
    """Names of the metrics that the panels and variables of a dashboard ask for."""
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    texts += [str(one["query"]) for one in dashboard["templating"]["list"] if one["type"] == "query"]
    return {name for text in texts for name in re.findall(r"\bray_\w+", text)}


def test_the_dashboard_asks_for_what_runs_export():
    dashboard = json.loads((CLUSTER / "grafana" / "stssl.json").read_text())
    exported = {f"ray_{name}" for name in (*EXPORTED, VALIDATION)}
    assert asked_of_prometheus(dashboard) == exported
    for panel in dashboard["panels"]:
        assert (
            panel["title"]
            and panel["fieldConfig"]["defaults"]["unit"]
            and asked_of_prometheus({"panels": [panel], "templating": {"list": []}})
        )
    text = (ROOT / "docs" / "tutorials" / "cluster.md").read_text()
    assert [name for name in exported if f"`{name}`" not in text] == []


def test_control_a_metric_that_no_run_exports_is_seen():
    panel = {"targets": [{"expr": "max by (run) (ray_stssl_lose{run=~'$run'})"}]}
    dashboard = {"panels": [panel], "templating": {"list": []}}
    assert asked_of_prometheus(dashboard) == {"ray_stssl_lose"}


def test_tokens_are_on_and_nothing_opens_ports():
    for path in FILES:
        text = path.read_text()
        assert "0.0.0.0" not in text, path
        assert "RAY_AUTH_MODE=disabled" not in text, path
    for command in read("aws.yaml")["head_start_ray_commands"] + read("aws.yaml")["worker_start_ray_commands"]:
        assert command == "ray stop" or command.startswith("RAY_AUTH_MODE=token ray start")


def test_clusters_that_start_empty_say_how_runs_wait_for_nodes():
    """A run is refused where there is no room for it: from zero nodes none would ever start."""
    (group,) = read("kuberay-cluster.yaml")["spec"]["workerGroupSpecs"]
    empty = {"kuberay-cluster.yaml": group["replicas"]}
    empty["aws.yaml"] = sum(kind.get("min_workers", 0) for kind in read("aws.yaml")["available_node_types"].values())
    for name, nodes in empty.items():
        assert nodes > 0 or "launch.nodes_timeout_s=" in (CLUSTER / name).read_text(), name
    assert LaunchConfig(nodes_timeout_s=900) and "launch.nodes_timeout_s=900" in (CLUSTER / "README.md").read_text()
    (job,) = read("kuberay-job.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert job["replicas"] > 0 and "nodes_timeout_s" not in (CLUSTER / "kuberay-job.yaml").read_text()


def test_the_readme_names_what_exists_and_all_of_it():
    text = (CLUSTER / "README.md").read_text()
    for name in re.findall(r"(?:cluster|experiments)/[\w./-]+", text):
        assert (ROOT / name).exists(), name
    for path in FILES:
        assert f"`{path.relative_to(CLUSTER)}`" in text or path.name == "README.md", path
