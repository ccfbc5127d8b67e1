"""The three cluster files: through Ray's own validation, checks of what Ray does not look at, and AWS's launched.

The launch is the recipe of docs/cluster.md and then the real `ray up` against moto's simulated EC2, IAM, STS and S3;
ssh and rsync are scripts that note what they were asked and keep what the head is given.
"""

import copy
import json
import operator
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import reduce
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import boto3
import botocore.session
import jsonschema
import pytest
import requests
import yaml
from botocore.exceptions import ClientError
from botocore.validate import ParamValidator
from click.exceptions import ClickException
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

from tests.conftest import free_port, server

ROOT = Path(__file__).parent.parent
AWS, LOCAL, KUBERAY = "ray_cluster.yaml", "cluster/local.yaml", "cluster/kuberay.yaml"
DOCS = (ROOT / "docs/cluster.md").read_text()
RECIPE = dedent(re.search(r"```bash\n(.*?)```", DOCS.partition("2. Once per account")[2], re.DOTALL)[1])


def load(name):
    documents = list(yaml.safe_load_all((ROOT / name).read_text()))
    return documents if name == KUBERAY else documents[0]


NODES = {name: node_type["node_config"] for name, node_type in load(AWS)["available_node_types"].items()}
REGION, ZONES = load(AWS)["provider"]["region"], load(AWS)["provider"]["availability_zone"].split(",")


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
        run_instances = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")
        report = ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, run_instances.input_shape)
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
        ["ray stop", "ray start --address=$RAY_HEAD_IP:6379", "python -m cluster.spt"],
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


# The launch.

# What AWS's command line does with a subcommand of its API, so that the recipe runs as it is printed.
AWS_COMMAND = """
import sys
from pathlib import Path
import boto3, jmespath
from botocore import xform_name

service, operation, *rest = sys.argv[1:]
if (service, operation) == ("s3", "mb"):
    region = boto3.Session(region_name=rest[rest.index("--region") + 1])
    where = {"LocationConstraint": region.region_name}
    region.client("s3").create_bucket(Bucket=rest[0].removeprefix("s3://"), CreateBucketConfiguration=where)
    sys.exit()
client = boto3.client(service, region_name="us-east-1")
operation = operation.replace("-", "_")
model = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[operation])
flags = {"--" + xform_name(member, "-"): member for member in model.input_shape.members}
given = dict(zip(rest[::2], rest[1::2], strict=True))
query, _ = given.pop("--query", "@"), given.pop("--output", None)
read = lambda value: Path(value.removeprefix("file://")).read_text() if value.startswith("file://") else value
answer = getattr(client, operation)(**{flags[flag]: read(value) for flag, value in given.items()})
print(jmespath.search(query, answer))
"""

# What a machine with Docker and a GPU answers.
SSH = """#!/bin/sh
printf '%s\\n' "$*" >> "$NOTES/ssh"
case "$*" in
    *"command -v docker"*) echo /usr/bin/docker ;;
    *"json .Config.Env"*) echo '["HOME=/home/ray"]' ;;
    *"printenv HOME"*) echo /home/ray ;;
    *".Runtimes"*) echo 'map[nvidia:{nvidia-container-runtime}]' ;;
esac
"""
RSYNC = """#!/bin/sh
printf '%s\\n' "$*" >> "$NOTES/rsync"
for argument; do from=$to; to=$argument; done
case "$to" in */ray_bootstrap_*) cp "$from" "$HEAD_HOME/$(basename "$to")" ;; esac
"""

# What Ray's autoscaler on the head does when it wants machines.
AUTOSCALER = """
import json, sys, time
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

reader = FileConfigReader("ray_bootstrap_config.yaml")
config = reader.get_cached_autoscaling_config()
provider = NodeProviderAdapter(AWSNodeProvider(config.get_provider_config(), config.get_config("cluster_name")), reader)
for request in ("one", "another"):  # moto launches one machine per request, the least that Ray asks for
    provider.launch({"gpu": 1}, request)
provider._main_executor.shutdown()
provider._node_launcher_executors.shutdown()
errors = [str(error.__cause__ or error) for error in provider.poll_errors()]
seen = [] if errors else list(provider.get_non_terminated())
print(json.dumps([errors, seen, config.get_docker_config("gpu"), config.get_node_resources("gpu")]))
"""


class Aws:
    """A simulated AWS, a checkout, and a home of its own for whoever types there."""

    def __init__(self, url, folder):
        self.url, self.checkout = url, folder / "checkout"
        self.notes, self.head_home = folder / "notes", folder / "head"
        scripts, tools = folder / "bin", Path(sys.executable).parent
        for made in (scripts, self.notes, self.head_home, folder / "home", folder / "tmp"):
            made.mkdir()
        for name, text in {"aws": f"#!{sys.executable}{AWS_COMMAND}", "ssh": SSH, "rsync": RSYNC}.items():
            (scripts / name).write_text(text)
            (scripts / name).chmod(0o755)
        # Without .venv, which `ray up` would read as a whole.
        left_out = shutil.ignore_patterns(".*", "docs", "__pycache__", "demo-run", "build")
        shutil.copytree(ROOT, self.checkout, ignore=left_out)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))},
            "PATH": f"{scripts}:{tools}:{os.environ['PATH']}",
            "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"),
            "NOTES": str(self.notes), "HEAD_HOME": str(self.head_home),
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0",
        }  # fmt: skip

    def run(self, command, folder=None, **more):
        """Standard output of a line of bash."""
        done = subprocess.run(
            ["bash", "-euc", command], cwd=folder or self.checkout, env=self.environment | more,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def client(self, service, keys=None):
        keys = keys or {name: self.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        keys = {name.lower(): key for name, key in keys.items()}
        return boto3.client(service, REGION, endpoint_url=self.url, **keys)

    def role(self, name):
        """The keys that a machine with this role has."""
        sts = self.client("sts")
        arn = f"arn:aws:iam::{sts.get_caller_identity()['Account']}:role/{name}"
        keys = sts.assume_role(RoleArn=arn, RoleSessionName="machine")["Credentials"]
        return {
            "AWS_ACCESS_KEY_ID": keys["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
            "AWS_SESSION_TOKEN": keys["SessionToken"],
        }  # fmt: skip

    @contextmanager
    def permissions(self):
        """In here IAM's policies count; outside everybody may do everything, as moto has it by default."""
        requests.post(f"{self.url}/moto-api/reset-auth", data="0", timeout=10).raise_for_status()
        try:
            yield
        finally:
            requests.post(f"{self.url}/moto-api/reset-auth", data="inf", timeout=10).raise_for_status()

    def autoscale(self, role):
        """Ray's autoscaler launches two workers with the role's rights.

        Returns: errors, ids of all machines that it sees, docker and resources of a worker.
        """
        keys = self.role(role)
        with self.permissions():
            said = self.run(f"python -c {shlex.quote(AUTOSCALER)}", self.head_home, HOME=str(self.head_home), **keys)
        return json.loads(said.splitlines()[-1])

    def instances(self, kind):
        """What EC2 holds of the cluster's heads or workers and has not ended."""
        filters = [{"Name": "tag:ray-cluster-name", "Values": ["dgn"]}, {"Name": "tag:ray-node-type", "Values": [kind]}]
        filters += [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
        found = self.client("ec2").describe_instances(Filters=filters)["Reservations"]
        return [instance for reservation in found for instance in reservation["Instances"]]


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    """AWS after the recipe and `ray up`."""
    folder, port = tmp_path_factory.mktemp("aws"), free_port()
    (folder / "amis.json").write_text(json.dumps([{"ami_id": NODES["head"]["ImageId"], "name": "the pinned one"}]))
    settings = {
        "MOTO_AMIS_PATH": str(folder / "amis.json"), "MOTO_ENABLE_AMI_VALIDATION": "true",
        "MOTO_ENABLE_KEYPAIR_VALIDATION": "true",
    }  # fmt: skip
    moto = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with server(moto, port, settings) as url:
        simulated = Aws(url, folder)
        simulated.run(RECIPE, folder)
        simulated.run("ray get-auth-token --generate")
        simulated.run("ray up --yes --no-config-cache ray_cluster.yaml")
        yield simulated


def check_instance(instance, node_type):
    node, tags = NODES[node_type], {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert (instance["InstanceType"], instance["ImageId"]) == (node["InstanceType"], node["ImageId"])
    assert instance["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{node['IamInstanceProfile']['Name']}")
    assert instance.get("InstanceLifecycle") == node.get("InstanceMarketOptions", {}).get("MarketType")
    assert node["MetadataOptions"].items() <= instance["MetadataOptions"].items()
    assert instance["Placement"]["AvailabilityZone"] in ZONES
    assert tags["ray-user-node-type"] == node_type
    return tags


def test_ray_up_launches_the_head(aws):
    (head,) = aws.instances("head")
    tags = check_instance(head, "head")
    assert tags["Name"] == "ray-dgn-head"
    assert tags["ray-node-status"] == "up-to-date", "all commands ran"
    assert aws.instances("worker") == []


def test_ray_up_sets_the_head_up(aws):
    """What reaches the head's Docker: the image, options, packages, project, and Ray without work."""
    asked, sent = (aws.notes / "ssh").read_text(), (aws.notes / "rsync").read_text()
    config = load(AWS)
    (run,) = re.findall("docker run .*", asked)
    assert config["docker"]["image"] in run
    assert all(option in run for option in config["docker"]["run_options"])
    assert ":/home/ray/.ray/auth_token " in run
    assert "nvidia" not in run.partition("--net=host")[2], "the head's image is the one without CUDA"
    for command in [*config["setup_commands"], *config["head_start_ray_commands"]]:
        assert command.replace("~/", "/home/ray/") in asked
    assert re.search(r"RAY_OVERRIDE_RESOURCES=\S*CPU\S*:0\b", asked)
    assert re.search(r"--filter dir-merge,- .gitignore \./ \S+:\S+/~/dgn/$", sent, re.MULTILINE)
    token = (Path(aws.environment["HOME"]) / ".ray/auth_token").read_text()
    assert token
    assert token not in asked + sent, "the token goes as a file, never on a command line"


def test_autoscaler_launches_workers_with_the_heads_rights(aws):
    ec2 = aws.client("ec2")
    gpu = json.loads((aws.head_home / "ray_bootstrap_config.yaml").read_text())["available_node_types"]["gpu"]
    subnets = ec2.describe_subnets(SubnetIds=gpu["node_config"]["SubnetIds"])["Subnets"]
    assert {subnet["AvailabilityZone"] for subnet in subnets} == set(ZONES)
    errors, seen, docker, resources = aws.autoscale("dgn-head")
    assert errors == []
    assert set(seen) == {instance["InstanceId"] for instance in aws.instances("head") + aws.instances("worker")}
    assert docker["image"] == "rayproject/ray:2.60.0-py311-gpu"
    assert docker["run_options"] == load(AWS)["docker"]["run_options"]
    assert (resources["CPU"], resources["GPU"]) == (4, 1)
    workers = aws.instances("worker")
    assert len(workers) == 2
    for worker in workers:
        check_instance(worker, "gpu")
    errors, *_ = aws.autoscale("dgn-worker")
    assert len(errors) == 2
    assert all("not authorized to perform: ec2:RunInstances" in error for error in errors)
    assert len(aws.instances("worker")) == 2


@pytest.mark.parametrize("role", ["dgn-head", "dgn-worker"])
def test_roles_reach_their_bucket_and_no_other(aws, role):
    bucket = re.search(r"BUCKET=(\S+)", RECIPE)[1]
    aws.client("s3").create_bucket(Bucket=f"other-{role}", CreateBucketConfiguration={"LocationConstraint": REGION})
    s3 = aws.client("s3", aws.role(role))
    with aws.permissions():
        s3.put_object(Bucket=bucket, Key=f"{role}/run.json", Body=b"{}")
        assert s3.get_object(Bucket=bucket, Key=f"{role}/run.json")["Body"].read() == b"{}"
        assert s3.list_objects_v2(Bucket=bucket, Prefix=role)["KeyCount"] == 1
        s3.delete_object(Bucket=bucket, Key=f"{role}/run.json")
        for forbidden in (
            lambda: s3.put_object(Bucket=f"other-{role}", Key="run.json", Body=b"{}"),
            lambda: s3.list_objects_v2(Bucket=f"other-{role}"),
            lambda: s3.delete_bucket(Bucket=bucket),
        ):
            with pytest.raises(ClientError, match="AccessDenied"):
                forbidden()


def test_ray_down_ends_all(aws):
    if not aws.instances("worker"):
        aws.autoscale("dgn-head")
    assert aws.instances("head")
    aws.run("ray down --yes ray_cluster.yaml")
    assert aws.instances("head") + aws.instances("worker") == []
