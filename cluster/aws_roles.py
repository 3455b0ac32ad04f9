"""Make what cluster.yaml needs of AWS, once: a bucket and two roles.

    python cluster/aws_roles.py MY-BUCKET

`study-head` may do what Ray's autoscaler does there: list machines, start some with the workers'
role and this cluster's name, tag and end those, and look up the machine image; and it may use the
bucket. `study-worker` may use the bucket, nothing else. Each comes with its instance profile. The
role that AWS itself needs for spot machines is made, too. To run it again brings all up to date,
which also takes away what `study-head` was once allowed and does not need; another bucket replaces
the one before. Region and cluster's name are cluster.yaml's, so run it again after you edit these;
your AWS credentials are where boto3 finds them (`pip install boto3`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

CLUSTER = Path(__file__).parent.parent / "cluster.yaml"
EC2_MAY_BECOME = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "ec2.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}


def main(argv: list[str] | None = None) -> None:
    """Make the bucket and the roles."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bucket", metavar="BUCKET", help="its name; made if it does not exist")
    bucket = parser.parse_args(argv).bucket
    try:
        make_all(bucket)
    except (BotoCoreError, ClientError, ParamValidationError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def make_all(bucket: str) -> None:
    """Make the bucket, the roles and their profiles."""
    cluster = yaml.safe_load(CLUSTER.read_text())
    region = cluster["provider"]["region"]
    make_bucket(bucket, region)
    make_spot_role()
    use_bucket = {
        "Effect": "Allow",
        "Action": ["s3:ListBucket", "s3:GetBucketLocation", "s3:*Object", "s3:*MultipartUpload*"],
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }
    worker = make_role("study-worker", [use_bucket])
    make_role("study-head", [use_bucket, *start_workers(worker, region, cluster["cluster_name"])])
    take_away("study-head", "AmazonEC2FullAccess")  # which it had at first
    print(f"ready: bucket {bucket} in {region}, roles study-head and study-worker")


def start_workers(worker: str, region: str, cluster: str) -> list[dict[str, Any]]:
    """Return what Ray's autoscaler calls on the head (ray/autoscaler/_private/aws, cluster.yaml).

    Args:
        worker: ARN of the workers' role.
        region: The only one.
        cluster: Name of the cluster, which Ray writes on each machine as a tag.
    """
    partition, account = worker.split(":")[1], worker.split(":")[4]
    here = f"arn:{partition}:ec2:{region}:{account}"
    profile = f"arn:{partition}:iam::{account}:instance-profile/study-worker"
    parts = ("subnet", "network-interface", "security-group", "key-pair", "volume")
    ours = {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": cluster}}
    return [
        {  # has no narrower resource
            "Effect": "Allow",
            "Action": "ec2:DescribeInstances",
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:RequestedRegion": region}},
        },
        {  # workers of this cluster, with their role alone
            "Effect": "Allow",
            "Action": "ec2:RunInstances",
            "Resource": f"{here}:instance/*",
            "Condition": {
                "StringEquals": {
                    "aws:RequestTag/ray-cluster-name": cluster,
                    "ec2:MetadataHttpTokens": "required",
                },
                "ArnEquals": {"ec2:InstanceProfile": profile},
            },
        },
        {  # what a machine is made of
            "Effect": "Allow",
            "Action": "ec2:RunInstances",
            "Resource": [
                f"arn:{partition}:ec2:{region}::image/*",
                *(f"{here}:{part}/*" for part in (*parts, "spot-instances-request")),
            ],
        },
        {
            "Effect": "Allow",
            "Action": "ec2:CreateTags",
            "Resource": f"{here}:instance/*",
            "Condition": {"StringEquals": {"ec2:CreateAction": "RunInstances"}},
        },
        {
            "Effect": "Allow",
            "Action": ["ec2:CreateTags", "ec2:TerminateInstances"],
            "Resource": f"{here}:instance/*",
            "Condition": ours,
        },
        {
            "Effect": "Allow",
            "Action": "iam:PassRole",
            "Resource": worker,
            "Condition": {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}},
        },
        {  # public parameters only: `resolve:ssm:` of cluster.yaml
            "Effect": "Allow",
            "Action": "ssm:GetParameters",
            "Resource": f"arn:{partition}:ssm:{region}::parameter/aws/service/*",
        },
    ]


def make_bucket(bucket: str, region: str) -> None:
    """Make a bucket unless it is there."""
    s3 = boto3.client("s3", region_name=region)
    if bucket in {known["Name"] for known in s3.list_buckets()["Buckets"]}:
        return
    # us-east-1 is the one region that must not be named.
    place = {} if region == "us-east-1" else {"LocationConstraint": region}
    s3.create_bucket(Bucket=bucket, **({"CreateBucketConfiguration": place} if place else {}))


def make_spot_role() -> None:
    """Make the account's role for spot machines, which else the head would have to make."""
    try:
        boto3.client("iam").create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    except ClientError as error:  # each service says in its own way that it has one
        if error.response["Error"]["Code"] not in ("InvalidInput", "EntityAlreadyExists"):
            raise


def take_away(role: str, policy: str) -> None:
    """Detach a policy of AWS's own from a role that has it."""
    iam = boto3.client("iam")
    for attached in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        if attached["PolicyName"] == policy:
            iam.detach_role_policy(RoleName=role, PolicyArn=attached["PolicyArn"])


def make_role(name: str, statements: list[dict[str, Any]]) -> str:
    """Make a role that machines can have, and its instance profile; return the role's ARN."""
    iam = boto3.client("iam")
    try:
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(EC2_MAY_BECOME))
    except iam.exceptions.EntityAlreadyExistsException:
        role = iam.get_role(RoleName=name)
    iam.put_role_policy(
        RoleName=name,
        PolicyName="study",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": statements}),
    )
    try:
        iam.create_instance_profile(InstanceProfileName=name)
    except iam.exceptions.EntityAlreadyExistsException:
        pass
    profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    if not profile["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return str(role["Role"]["Arn"])


if __name__ == "__main__":
    main()
