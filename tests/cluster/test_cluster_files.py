"""The three cluster files: through Ray's own validation, and through checks of what Ray does not look at."""

import copy
import operator
import re
import shlex
from functools import cache, reduce
from importlib.metadata import version
from importlib.util import find_spec

import botocore.session
import jsonschema
import pytest
from botocore.validate import ParamValidator
from click.exceptions import ClickException
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

from tests.helpers.cluster_files import AWS, DOCS, KUBERAY, LOCAL, RECIPE, ROOT, load

# Checks. Each raises what Ray raises, or AssertionError.


def known(given, names):
    """No keys but these: others would be dropped in silence."""
    assert given.keys() <= set(names.split()), f"unknown: {given.keys() - set(names.split())}"


def check_by_ray(config):
    validate_config(prepare_config(copy.deepcopy(config)))
    assert config["auth"]["ssh_user"]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for mounted in set(config["file_mounts"].values()):
        assert mounted.startswith("~/") or (ROOT / mounted).exists(), f"no {mounted} to mount"
    for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
        for line in re.findall(r"ray start (.*)", command):
            cli.commands["start"].make_context("ray start", shlex.split(line))  # parses; starts nothing


def check_image(image):
    """Ray's image of the Ray and the Python that are pinned. Returns: cpu or gpu."""
    parts = re.fullmatch(r"rayproject/ray:([\d.]+)-py(\d)(\d+)-(cpu|gpu)", image)
    assert parts, f"{image} is not Ray's image of one version"
    assert parts[1] == version("ray")
    assert f"ray=={parts[1]}" in re.sub(r"\[.*?\]", "", (ROOT / "requirements.lock").read_text())
    assert f">={parts[2]}.{parts[3]}" in (ROOT / "pyproject.toml").read_text()
    return parts[4]


@cache
def run_instances():
    """EC2's operation, with the types of its parameters."""
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")


def check_aws(config):
    check_by_ray(config)
    assert config["idle_timeout_minutes"] <= 10, "idle machines cost"
    known(config["provider"], "type region availability_zone cache_stopped_nodes")
    region, zones = config["provider"]["region"], config["provider"]["availability_zone"].split(",")
    assert len(zones) >= 2, "several zones: spot machines run out in one"
    assert not config["provider"]["cache_stopped_nodes"]
    options = shlex.split(" ".join(config["docker"]["run_options"]))
    assert "RAY_AUTH_MODE=token" in options
    assert f"AWS_DEFAULT_REGION={region}" in options
    shm_gb = next(int(option.removeprefix("--shm-size=").removesuffix("g")) for option in options if "shm" in option)
    head, *workers = (config["head_node_type"], *(config["available_node_types"].keys() - {config["head_node_type"]}))
    profiles = {}
    for name, node_type in config["available_node_types"].items():
        node = node_type["node_config"]
        report = ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, run_instances().input_shape)
        assert not report.has_errors(), report.generate_report()
        assert node["InstanceType"] in INSTANCE_TYPES, f"EC2 has no {node['InstanceType']}"
        offered = {(o["Location"], o["InstanceType"]) for o in INSTANCE_TYPE_OFFERINGS["availability-zone"][region]}
        for zone in zones:
            assert (zone, node["InstanceType"]) in offered, f"no {node['InstanceType']} in {zone}"
        assert shm_gb * 1024 >= 0.3 * INSTANCE_TYPES[node["InstanceType"]]["MemoryInfo"]["SizeInMiB"]
        assert re.fullmatch("ami-[0-9a-f]{17}", node["ImageId"])
        assert node["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
        assert node["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] >= 100
        profiles[name] = node["IamInstanceProfile"]["Name"]
        assert re.search(rf"\b{profiles[name]}\b", RECIPE), f"docs/cluster.md makes no {profiles[name]}"
    assert config["available_node_types"][head]["resources"] == {"CPU": 0}, "the head renders nothing"
    assert "InstanceMarketOptions" not in config["available_node_types"][head]["node_config"], "the head must stay"
    assert check_image(config["docker"]["image"]) == "cpu"
    for worker in workers:
        node_type = config["available_node_types"][worker]
        assert profiles[worker] != profiles[head], "workers may not launch machines"
        assert "GpuInfo" in INSTANCE_TYPES[node_type["node_config"]["InstanceType"]], "workers need a GPU"
        assert "spot" in INSTANCE_TYPES[node_type["node_config"]["InstanceType"]]["SupportedUsageClasses"]
        assert node_type["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert node_type["min_workers"] == 0 < node_type["max_workers"] <= config["max_workers"]
        assert check_image(node_type["docker"]["worker_image"]) == "gpu"
    assert config["rsync_filter"] == [".gitignore"], "no .venv, no pictures"
    check_setup(config["setup_commands"], (ROOT / config["file_mounts"]["~/dgn"]))
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in config["head_start_ray_commands"][-1]
    assert "$RAY_HEAD_IP:6379" in config["worker_start_ray_commands"][1]
    assert find_spec(re.search(r"python -m (\S+)", config["worker_start_ray_commands"][2])[1])


def check_setup(commands, folder):
    pins, project = (shlex.split(command.replace("&&", " ")) for command in commands)
    assert pins[:2] == project[:2] == ["cd", "~/dgn"]
    assert "--require-hashes" in pins
    assert (folder / pins[pins.index("-r") + 1]).is_file()
    assert {"--no-deps", "--no-build-isolation", "-e"} <= set(project)
    assert (folder / project[-1] / "pyproject.toml").is_file()


def check_kuberay(documents):
    account, job = documents
    assert (account["apiVersion"], account["kind"]) == ("v1", "ServiceAccount")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert account["metadata"]["namespace"] == job["metadata"]["namespace"]
    assert list(account["metadata"]["annotations"]) == ["eks.amazonaws.com/role-arn"]
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    # Names from the Go types of KubeRay 1.6 and of Kubernetes, as far as the file uses them.
    known(spec, "entrypoint backoffLimit shutdownAfterJobFinishes ttlSecondsAfterFinished rayClusterSpec")
    known(
        cluster,
        "rayVersion authOptions enableInTreeAutoscaling autoscalerOptions headGroupSpec workerGroupSpecs",
    )
    known(cluster["authOptions"], "mode secretName")
    known(cluster["autoscalerOptions"], "idleTimeoutSeconds upscalingMode resources env")
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["ttlSecondsAfterFinished"] <= 3600
    assert spec["backoffLimit"] > 0
    assert f"-- {spec['entrypoint']}" in (ROOT / "README.md").read_text(), "the README's line"
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        known(group, "groupName replicas minReplicas maxReplicas rayStartParams template")
        pod = group["template"]["spec"]
        known(pod, "serviceAccountName containers tolerations nodeSelector")
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        (container,) = pod["containers"]
        known(container, "name image env resources")
        known(container["resources"], "limits requests")
        for amounts in container["resources"].values():
            known(amounts, "cpu memory nvidia.com/gpu")
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert container["image"] in DOCS.split(), "the image that docs/cluster.md builds"
    # The namespace and the name are the operator's to give; the rest is what Ray's autoscaler reads.
    derived = _derive_autoscaling_config_from_ray_cr({"metadata": job["metadata"], "spec": cluster})
    assert derived["idle_timeout_minutes"] <= 10
    assert derived["available_node_types"]["headgroup"]["resources"]["CPU"] == 0
    for group in cluster["workerGroupSpecs"]:
        node_type = derived["available_node_types"][group["groupName"]]
        assert node_type["resources"]["GPU"] == 1
        assert node_type["min_workers"] == 0 < node_type["max_workers"]


CHECKS = {AWS: check_aws, LOCAL: check_by_ray, KUBERAY: check_kuberay}


@pytest.mark.parametrize("name", CHECKS)
def test_file_is_right(name):
    CHECKS[name](load(name))


def test_images_of_the_docs_are_the_pinned_ones():
    for image in re.findall(r"FROM (\S+)", DOCS):
        assert check_image(image) == "gpu"


HEAD, GPU = "available_node_types head node_config", "available_node_types gpu node_config"
CLUSTER = "1 spec rayClusterSpec"
PODS = f"{CLUSTER} workerGroupSpecs 0"
TYPOS = [
    (AWS, "max_worker", 8),
    (AWS, "idle_timeout_minutes", 60),
    (AWS, "provider region", "us-east-9"),
    (AWS, "provider availability_zone", "us-east-2a"),
    (AWS, "provider availability_zone", "us-east-2a,us-east-2d"),
    (AWS, "provider cache_stopped_nodes", True),
    (AWS, "provider zone", "us-east-2a"),
    (AWS, "auth ssh_usr", "ubuntu"),
    (AWS, "docker image", "rayproject/ray:latest"),
    (AWS, "docker image", "rayproject/ray:2.59.0-py311-cpu"),
    (AWS, "docker image", "rayproject/ray:2.60.0-py310-cpu"),
    (AWS, "docker run_options", ["--shm-size=8g", "-e AWS_DEFAULT_REGION=us-east-2"]),
    (AWS, "docker run_options", ["--shm-size=8g", "-e RAY_AUTH_MODE=token"]),
    (AWS, "docker run_options", ["--shm-size=1g", "-e RAY_AUTH_MODE=token -e AWS_DEFAULT_REGION=us-east-2"]),
    (AWS, "available_node_types head resources", {}),
    (AWS, "available_node_types head max_worker", 1),
    (AWS, f"{HEAD} IamInstanceProfile", {"Nmae": "dgn-head"}),
    (AWS, f"{HEAD} InstanceMarketOptions", {"MarketType": "spot"}),
    (AWS, f"{HEAD} MetadataOptions HttpTokens", "optional"),
    (AWS, f"{GPU} InstanceType", "g6.xlrage"),
    (AWS, f"{GPU} InstanceType", "m7i.xlarge"),
    (AWS, f"{GPU} ImageId", "ami-06517bc7fad3c6a4"),
    (AWS, f"{GPU} ImageID", "ami-06517bc7fad3c6a48"),
    (AWS, f"{GPU} InstanceMarketOptions", {"MarketTyp": "spot"}),
    (AWS, f"{GPU} InstanceMarketOptions", {"MarketType": "spott"}),
    (AWS, f"{GPU} IamInstanceProfile", None),
    (AWS, f"{GPU} IamInstanceProfile Name", "dgn-head"),
    (AWS, f"{GPU} IamInstanceProfile Name", "dgn-wroker"),
    (AWS, f"{GPU} MetadataOptions HttpPutResponseHopLimit", 1),
    (AWS, f"{GPU} BlockDeviceMappings", [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": "150"}}]),
    (AWS, "available_node_types gpu docker worker_image", "rayproject/ray:2.60.0-py311-cpu"),
    (AWS, "available_node_types gpu docker image", "rayproject/ray:2.60.0-py311-gpu"),
    (AWS, "available_node_types gpu min_workers", 1),
    (AWS, "head_node_type", "haed"),
    (AWS, "file_mounts", {"~/dgn": "."}),
    (AWS, "file_mounts ~/more", "no/such/folder"),
    (AWS, "rsync_filter", []),
    (AWS, "setup_commands", ["cd ~/dgn && pip install -r requirements.lock", "cd ~/dgn && pip install -e ."]),
    (AWS, "head_start_ray_commands", ["ray stop", "ray start --head --dashboard-hots=127.0.0.1"]),
    (AWS, "head_start_ray_commands", ["ray stop", "ray start --head --port=6379 --dashboard-host=0.0.0.0"]),
    (
        AWS,
        "worker_start_ray_commands",
        ["ray stop", "ray start --address=$RAY_HEAD_IP:6379", "python -m dgn.cluster.spt"],
    ),
    (LOCAL, "max_worker", 2),
    (LOCAL, "provider", {"type": "local", "head_ips": "10.0.0.1", "worker_ips": ["10.0.0.2"]}),
    (LOCAL, "file_mounts ~/dgn/dgn", "no/such/folder"),
    (LOCAL, "head_start_ray_commands", ["ray start --haed"]),
    (KUBERAY, "0 metadata annotations", {"eks.amazonaws.com/rolearn": "arn:aws:iam::123456789012:role/dgn-pods"}),
    (KUBERAY, "1 apiVersion", "ray.io/v1alpha1"),
    (KUBERAY, "1 spec backofLimit", 3),
    (KUBERAY, "1 spec entrypoint", "dgn rendr s3://bucket/run"),
    (KUBERAY, "1 spec shutdownAfterJobFinishes", False),
    (KUBERAY, f"{CLUSTER} rayVersion", "2.59.0"),
    (KUBERAY, f"{CLUSTER} authOptions mode", "tokn"),
    (KUBERAY, f"{CLUSTER} autoscalerOptions", {"idleTimeoutSecond": 300}),
    (KUBERAY, f"{CLUSTER} headGroupSpec rayStartParams", {}),
    (KUBERAY, f"{CLUSTER} headGroupSpec template spec serviceAccountName", "default"),
    (KUBERAY, f"{PODS} minReplicas", 1),
    (KUBERAY, f"{PODS} maxReplica", 8),
    (
        KUBERAY,
        f"{PODS} template spec containers 0 image",
        "registry.example.com/dgn:latst",
    ),
    (KUBERAY, f"{PODS} template spec containers 0 resources limits gpu", "1"),
]


@pytest.mark.parametrize(("name", "path", "value"), TYPOS, ids=lambda value: str(value)[:60])
def test_typo_is_caught(name, path, value):
    config = load(name)
    *parents, key = [int(step) if step.isdigit() else step for step in path.split()]
    reduce(operator.getitem, parents, config)[key] = value
    with pytest.raises((AssertionError, KeyError, TypeError, ValueError, jsonschema.ValidationError, ClickException)):
        CHECKS[name](config)
