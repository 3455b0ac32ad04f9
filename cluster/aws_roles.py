"""Create the AWS resources that cluster.yaml needs: a bucket and two roles. Run it once.

    python cluster/aws_roles.py MY-BUCKET

`study-head` has the permissions of Ray's autoscaler: list instances, start instances with the
workers' role and this cluster's name, tag and terminate those, and look up the machine image. It
may also use the bucket. `study-worker` may only use the bucket. Each role has its instance profile.
The service-linked role that AWS needs for spot instances is created too. Running the script again
updates everything, and removes permissions that `study-head` no longer needs; another bucket
replaces the earlier one. Region and cluster name are read from cluster.yaml, so run it again after
changing them. AWS credentials are found by boto3 (`pip install boto3`).
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
    """Create the bucket and the roles."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "bucket", metavar="BUCKET", help="name of the bucket; created if it does not exist"
    )
    bucket = parser.parse_args(argv).bucket
    try:
        make_all(bucket)
    except (BotoCoreError, ClientError, ParamValidationError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def make_all(bucket: str) -> None:
    """Create the bucket, the roles and their instance profiles."""
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
    take_away("study-head", "AmazonEC2FullAccess")  # a policy of earlier versions
    print(f"ready: bucket {bucket} in {region}, roles study-head and study-worker")


def start_workers(worker: str, region: str, cluster: str) -> list[dict[str, Any]]:
    """Return the permissions of Ray's autoscaler on the head (ray/autoscaler/_private/aws).

    Args:
        worker: ARN of the workers' role.
        region: The only region allowed.
        cluster: Name of the cluster, with which Ray tags each instance.
    """
    partition, account = worker.split(":")[1], worker.split(":")[4]
    here = f"arn:{partition}:ec2:{region}:{account}"
    profile = f"arn:{partition}:iam::{account}:instance-profile/study-worker"
    parts = ("subnet", "network-interface", "security-group", "key-pair", "volume")
    ours = {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": cluster}}
    return [
        {  # this action has no narrower resource
            "Effect": "Allow",
            "Action": "ec2:DescribeInstances",
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:RequestedRegion": region}},
        },
        {  # only workers of this cluster, with their role
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
        {  # the parts of an instance
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
        {  # public parameters only: for `resolve:ssm:` in cluster.yaml
            "Effect": "Allow",
            "Action": "ssm:GetParameters",
            "Resource": f"arn:{partition}:ssm:{region}::parameter/aws/service/*",
        },
    ]


def make_bucket(bucket: str, region: str) -> None:
    """Create a bucket unless it exists."""
    s3 = boto3.client("s3", region_name=region)
    if bucket in {known["Name"] for known in s3.list_buckets()["Buckets"]}:
        return
    # us-east-1 is the only region that must not be named.
    place = {} if region == "us-east-1" else {"LocationConstraint": region}
    s3.create_bucket(Bucket=bucket, **({"CreateBucketConfiguration": place} if place else {}))


def make_spot_role() -> None:
    """Create the account's role for spot instances, so that the head need not be allowed to."""
    try:
        boto3.client("iam").create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    except ClientError as error:  # the error code for an existing role varies
        if error.response["Error"]["Code"] not in ("InvalidInput", "EntityAlreadyExists"):
            raise


def take_away(role: str, policy: str) -> None:
    """Detach an AWS managed policy from a role, if attached."""
    iam = boto3.client("iam")
    for attached in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        if attached["PolicyName"] == policy:
            iam.detach_role_policy(RoleName=role, PolicyArn=attached["PolicyArn"])


def make_role(name: str, statements: list[dict[str, Any]]) -> str:
    """Create a role for instances, and its instance profile; return the role's ARN."""
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
