"""The AWS cluster, launched: the recipe of docs/cluster.md, then the real `ray up`, against moto's simulated AWS.

`ssh` and `rsync` are scripts that note what they were asked, and keep what the head is given.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
import requests
from botocore.exceptions import ClientError

from tests.conftest import free_port, server
from tests.helpers.cluster_files import AWS, RECIPE, ROOT, load

NODES = {name: node_type["node_config"] for name, node_type in load(AWS)["available_node_types"].items()}
REGION, ZONES = load(AWS)["provider"]["region"], load(AWS)["provider"]["availability_zone"].split(",")


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
        shutil.copytree(ROOT, self.checkout, ignore=left_out, symlinks=True)
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
