"""cluster.yaml: what Ray says of it, what its pins are, and what AWS would be asked for.

AWS is moto's simulation in this process. The machines themselves are in test_cluster_ssh.py.
"""

from __future__ import annotations

import copy
import fnmatch
import json
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import ray.autoscaler
import yaml
from botocore.exceptions import ClientError
from conftest import ROOT
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count
from packaging.requirements import Requirement
from packaging.version import Version
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.commands import _bootstrap_config, try_logging_config
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

TEXT = (ROOT / "cluster.yaml").read_text()


def cluster() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(TEXT)
    return config


def test_ray_accepts_cluster_yaml() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster(), schema)
    prepared = prepare_config(cluster())
    validate_config(prepared)
    worker = prepared["available_node_types"]["gpu-worker"]
    assert (worker["min_workers"], worker["max_workers"]) == (0, 4)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0
    assert prepared["max_workers"] >= worker["max_workers"]  # else it would be the limit


def test_three_lines_are_to_edit() -> None:
    edits = [line for line in TEXT.splitlines() if "# EDIT" in line]
    assert [line.split("# EDIT: ")[1] for line in edits] == ["region", "key", "sizes"]
    assert "region:" in edits[0] and "key_name:" in edits[1]
    assert "InstanceType: g5.xlarge" in edits[2] and "max_workers: 4" in edits[2]


def test_only_ssh_is_open_and_nodes_share_the_token() -> None:
    config = cluster()
    assert "security_group" not in config["provider"]
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--host 127.0.0.1" in (ROOT / "cluster/mlflow.sh").read_text()
    assert "export RAY_AUTH_MODE=token" in (ROOT / "cluster/env.sh").read_text()
    assert config["cluster_synced_files"] == ["~/.ray/auth_token"]


def pins() -> dict[str, Version]:
    lines = (ROOT / "cluster/requirements.txt").read_text().splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"([A-Za-z0-9_.-]+)==(\S+)", line).groups()  # type: ignore[union-attr]
            found[name.lower().replace("_", "-")] = Version(version)
    return found


def test_pins_are_exact_and_what_the_project_asks_for() -> None:
    known = pins()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = project["project"]["dependencies"] + project["build-system"]["requires"]
    for text in [*asked, "boto3", "psycopg-binary"]:
        requirement = Requirement(text)
        assert requirement.name.lower() in known, text
        assert known[requirement.name.lower()] in requirement.specifier, text
    assert known["ray"] == Version(ray.__version__), "test the Ray that the nodes run"
    assert not known["torch"].local and not known["torchvision"].local


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the key there
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    with mock_aws():
        yield


def documents(role: str) -> list[dict[str, Any]]:
    policy = boto3.client("iam").get_role_policy(RoleName=role, PolicyName="study")
    statements: list[dict[str, Any]] = policy["PolicyDocument"]["Statement"]
    return statements


def test_roles_give_the_least_and_can_be_made_again(aws: None) -> None:
    make = runpy.run_path(str(ROOT / "cluster/aws_roles.py"))["main"]
    make(["first"])
    make(["second"])
    assert {b["Name"] for b in boto3.client("s3").list_buckets()["Buckets"]} == {"first", "second"}
    iam = boto3.client("iam")
    (worker,) = documents("study-worker")
    assert worker["Resource"] == ["arn:aws:s3:::second", "arn:aws:s3:::second/*"]
    assert documents("study-head")[0]["Resource"] == worker["Resource"]
    for role in ("study-head", "study-worker"):
        assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    roles = iam.list_roles(PathPrefix="/aws-service-role/spot.amazonaws.com")["Roles"]
    assert len(roles) == 1


def test_a_head_of_before_loses_what_it_does_not_need(aws: None) -> None:
    make = runpy.run_path(str(ROOT / "cluster/aws_roles.py"))["main"]
    make(["first"])
    iam, policy = boto3.client("iam"), "arn:aws:iam::aws:policy/AmazonEC2FullAccess"
    iam.attach_role_policy(RoleName="study-head", PolicyArn=policy)
    make(["first"])
    assert iam.list_attached_role_policies(RoleName="study-head")["AttachedPolicies"] == []


HERE = "arn:aws:ec2:eu-central-1:123456789012"
WORKER = "arn:aws:iam::123456789012:instance-profile/study-worker"
START = {
    "aws:RequestTag/ray-cluster-name": "study",
    "ec2:MetadataHttpTokens": "required",
    "ec2:InstanceProfile": WORKER,
}
OURS = {"ec2:ResourceTag/ray-cluster-name": "study"}
ROLE = "arn:aws:iam::123456789012:role/study-worker"
PARAMETERS = "arn:aws:ssm:eu-central-1::parameter"


def allows(action: str, resource: str, context: dict[str, str]) -> bool:
    """Return whether a statement of the head's policy allows it, conditions included."""
    for statement in documents("study-head"):
        assert statement["Effect"] == "Allow"
        assert set(statement.get("Condition", {})) <= {"StringEquals", "ArnEquals"}
        actions, resources = (
            [text] if isinstance(text, str) else text
            for text in (statement["Action"], statement["Resource"])
        )
        wanted = [pair for each in statement.get("Condition", {}).values() for pair in each.items()]
        if (
            any(fnmatch.fnmatchcase(action, text) for text in actions)
            and any(fnmatch.fnmatchcase(resource, text) for text in resources)
            and all(context.get(key) == value for key, value in wanted)
        ):
            return True
    return False


CASES = [
    ("ec2:DescribeInstances", "*", {"aws:RequestedRegion": "eu-central-1"}, True),
    ("ec2:DescribeInstances", "*", {"aws:RequestedRegion": "us-east-1"}, False),
    ("ec2:RunInstances", f"{HERE}:instance/*", START, True),
    ("ec2:RunInstances", f"{HERE}:instance/*", {**START, "ec2:InstanceProfile": "a"}, False),
    ("ec2:RunInstances", f"{HERE}:instance/*", {**START, "ec2:MetadataHttpTokens": ""}, False),
    ("ec2:RunInstances", f"{HERE}:instance/*", OURS, False),
    ("ec2:RunInstances", f"{HERE}:volume/*", {}, True),
    ("ec2:RunInstances", "arn:aws:ec2:us-east-1:123456789012:volume/*", {}, False),
    ("ec2:RunInstances", "arn:aws:ec2:eu-central-1::image/ami-1", {}, True),
    ("ec2:CreateTags", f"{HERE}:instance/i-1", {"ec2:CreateAction": "RunInstances"}, True),
    ("ec2:CreateTags", f"{HERE}:instance/i-1", OURS, True),
    ("ec2:CreateTags", f"{HERE}:instance/i-1", {}, False),
    ("ec2:CreateTags", f"{HERE}:security-group/sg-1", OURS, False),
    ("ec2:TerminateInstances", f"{HERE}:instance/i-1", OURS, True),
    ("ec2:TerminateInstances", f"{HERE}:instance/i-1", {}, False),
    ("iam:PassRole", ROLE, {"iam:PassedToService": "ec2.amazonaws.com"}, True),
    ("iam:PassRole", ROLE, {"iam:PassedToService": "lambda.amazonaws.com"}, False),
    ("iam:PassRole", ROLE.replace("worker", "head"), START, False),
    ("ssm:GetParameters", f"{PARAMETERS}/aws/service/deeplearning/ami/x", {}, True),
    ("ssm:GetParameters", f"{PARAMETERS}/password", {}, False),
    ("s3:PutObject", "arn:aws:s3:::bucket/studies/a", {}, True),
    ("s3:PutObject", "arn:aws:s3:::other/studies/a", {}, False),
]


def test_conditions_of_the_head(aws: None) -> None:
    """Moto evaluates neither resources nor conditions of EC2, so they are evaluated here."""
    runpy.run_path(str(ROOT / "cluster/aws_roles.py"))["main"](["bucket"])
    for action, resource, context, allowed in CASES:
        assert allows(action, resource, context) is allowed, (action, resource, context)


def test_the_head_may_do_what_ray_does_there_and_no_more(
    aws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own provider starts, tags and ends a worker with the head's keys, by moto's IAM."""
    runpy.run_path(str(ROOT / "cluster/aws_roles.py"))["main"](["bucket"])
    config = _bootstrap_config(cluster(), no_config_cache=True)  # `ray up`, with the user's keys
    node = copy.deepcopy(config["available_node_types"]["gpu-worker"]["node_config"])
    iam = boto3.client("iam")
    # Moto knows of EC2's actions, not of their resources.
    statements = [{**each, "Resource": "*"} for each in documents("study-head")]
    document = json.dumps({"Version": "2012-10-17", "Statement": statements})
    iam.put_role_policy(RoleName="study-head", PolicyName="study", PolicyDocument=document)
    keys = boto3.client("sts").assume_role(
        RoleArn=iam.get_role(RoleName="study-head")["Role"]["Arn"], RoleSessionName="head"
    )["Credentials"]
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    values = (keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"])
    head = dict(zip(names, values, strict=True))
    region = config["provider"]["region"]
    client = boto3.client("ec2", region_name=region, **head)
    set_initial_no_auth_action_count(0)(_as_head)(config, node, head, client)


def _as_head(config: dict[str, Any], node: dict[str, Any], head: dict[str, str], ec2: Any) -> None:
    provider = AWSNodeProvider(
        {**config["provider"], "aws_credentials": head}, config["cluster_name"]
    )
    tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: "gpu-worker"}
    (made,) = provider.create_node(node, tags, 1)
    assert provider.non_terminated_nodes({TAG_RAY_NODE_KIND: "worker"}) == [made]
    provider.set_node_tags(made, {"ray-node-status": "up-to-date"})
    assert provider.is_running(made) and provider.internal_ip(made)
    provider.terminate_node(made)
    provider.terminate_nodes([made])
    session = {**head, "region_name": config["provider"]["region"]}
    iam = boto3.client("iam", **session)
    for refused in (
        lambda: iam.create_user(UserName="me"),
        lambda: iam.attach_role_policy(
            RoleName="study-head", PolicyArn="arn:aws:iam::aws:policy/AdministratorAccess"
        ),
        lambda: ec2.create_security_group(GroupName="open", Description="open"),
        lambda: ec2.describe_snapshots(),
        lambda: ec2.modify_instance_metadata_options(InstanceId=made, HttpTokens="optional"),
        lambda: boto3.client("ssm", **session).get_parameter(Name="password"),
    ):
        with pytest.raises(ClientError, match="not authorized|AccessDenied|Unauthorized"):
            refused()


def test_aws_launches_the_head_and_a_spot_worker(aws: None) -> None:
    config = cluster()
    region = config["provider"]["region"]
    runpy.run_path(str(ROOT / "cluster/aws_roles.py"))["main"](["bucket"])
    # All of `ray up` up to the first machine.
    config = _bootstrap_config(config, no_config_cache=True)
    try_logging_config(config)
    resources = {name: each["resources"] for name, each in config["available_node_types"].items()}
    assert resources["gpu-worker"]["GPU"] == 1  # else no waiting trial would start one
    assert resources["head"]["CPU"] == 0 and "GPU" not in resources["head"]
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    kinds = {"head": "head", "gpu-worker": "worker"}
    for name, kind in kinds.items():
        node = copy.deepcopy(config["available_node_types"][name]["node_config"])
        provider.create_node(node, {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: name}, 1)
    ec2 = boto3.client("ec2", region_name=region)
    reservations = ec2.describe_instances()["Reservations"]
    made = {}
    for instance in (each for reservation in reservations for each in reservation["Instances"]):
        tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
        assert tags["ray-cluster-name"] == "study"
        made[tags[TAG_RAY_USER_NODE_TYPE]] = instance
    head, worker = made["head"], made["gpu-worker"]
    assert (head["InstanceType"], worker["InstanceType"]) == ("m6i.xlarge", "g5.xlarge")
    assert "InstanceLifecycle" not in head and worker["InstanceLifecycle"] == "spot"
    assert head["IamInstanceProfile"]["Arn"].endswith("instance-profile/study-head")
    assert worker["IamInstanceProfile"]["Arn"].endswith("instance-profile/study-worker")
    for instance in made.values():
        assert instance["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/ami/x86_64/")
        assert instance["KeyName"] == "study"
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        (disk,) = instance["BlockDeviceMappings"]
        volume = ec2.describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"][0]
        assert (volume["Size"], volume["VolumeType"]) == (200, "gp3")
        assert [group["GroupName"] for group in instance["SecurityGroups"]] == [
            "ray-autoscaler-study"
        ]
    # The world reaches port 22, the nodes reach each other, and that is all.
    groups = ec2.describe_security_groups(GroupNames=["ray-autoscaler-study"])["SecurityGroups"]
    (group,) = groups
    world = [rule for rule in group["IpPermissions"] if rule["IpRanges"] or rule["Ipv6Ranges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in world] == [(22, 22)]
    (inside,) = [rule for rule in group["IpPermissions"] if rule not in world]
    assert [pair["GroupId"] for pair in inside["UserIdGroupPairs"]] == [group["GroupId"]]
    key = Path.home() / ".ssh" / "study.pem"
    assert key.stat().st_mode & 0o777 == 0o600
