"""Make what cluster.yaml needs of AWS, once: a bucket and two roles.

    python cluster/aws_roles.py MY-BUCKET

`study-head` may start and end machines, hand workers their role, look up the machine image, and use
the bucket; `study-worker` may use the bucket, nothing else. Each comes with its instance profile.
To run it again brings them up to date; another bucket replaces the one before. The region
is cluster.yaml's, and your AWS credentials are where boto3 finds them (`pip install boto3`).
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
    region = yaml.safe_load(CLUSTER.read_text())["provider"]["region"]
    make_bucket(bucket, region)
    use_bucket = {
        "Effect": "Allow",
        "Action": ["s3:ListBucket", "s3:GetBucketLocation", "s3:*Object", "s3:*MultipartUpload*"],
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }
    worker = make_role("study-worker", [use_bucket])
    make_role(
        "study-head",
        [
            use_bucket,
            {"Effect": "Allow", "Action": "iam:PassRole", "Resource": worker},
            {  # public parameters only: `resolve:ssm:` of cluster.yaml
                "Effect": "Allow",
                "Action": "ssm:GetParameters",
                "Resource": "arn:aws:ssm:*:*:parameter/aws/service/*",
            },
        ],
        managed=["arn:aws:iam::aws:policy/AmazonEC2FullAccess"],  # as Ray gives its own role
    )
    print(f"ready: bucket {bucket} in {region}, roles study-head and study-worker")


def make_bucket(bucket: str, region: str) -> None:
    """Make a bucket unless it is there."""
    s3 = boto3.client("s3", region_name=region)
    if bucket in {known["Name"] for known in s3.list_buckets()["Buckets"]}:
        return
    # us-east-1 is the one region that must not be named.
    place = {} if region == "us-east-1" else {"LocationConstraint": region}
    s3.create_bucket(Bucket=bucket, **({"CreateBucketConfiguration": place} if place else {}))


def make_role(name: str, statements: list[dict[str, Any]], managed: list[str] | None = None) -> str:
    """Make a role that machines can have, and its instance profile; return the role's ARN."""
    iam = boto3.client("iam")
    try:
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(EC2_MAY_BECOME))
    except iam.exceptions.EntityAlreadyExistsException:
        role = iam.get_role(RoleName=name)
    for policy in managed or []:
        iam.attach_role_policy(RoleName=name, PolicyArn=policy)
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
