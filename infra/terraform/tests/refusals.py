"""What a person gets who asks for what cannot be: each case is run against the emulator, and must end with its fix. For apply.py."""

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import boto3

from contract.errors import PipelineError
from infra.machines.deploy_workers import Stack

VPC = "-target=module.network.aws_vpc.this"


def refusals(stack: Stack, state: str) -> None:
    """`stack` is initialised on the bucket `state`, and nothing is applied yet."""
    refused(stack, "take one such as us-east-1", "-var=region=eu-west-9")
    refused(stack, "types with NVIDIA GPUs are wanted", '-var=instance_types=["m5.xlarge"]')
    refused(stack, "GPUs and the variable gpus says 2", "-var=gpus=2")
    refused(stack, "region does not rent this instance type", '-var=instance_types=["g5.999xlarge"]')
    refused(stack, "is not there; `make deploy-workers` makes it", "-var=code_archive=/nowhere.tar.gz")
    with locked(state, f"{stack.environment}/terraform.tfstate"):
        refused(stack, "somebody else is at work on this environment")
    with variables(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None):
        refused(stack, "aws configure, or AWS_PROFILE")
    with user_without("ec2:CreateVpc"):
        refused(stack, "your AWS user lacks that permission", VPC, verb="apply")
    try:
        stack.init("bucket=not-there", "region=us-east-1", "use_path_style=true", "skip_credentials_validation=true")
    except PipelineError as error:
        assert "apply infra/terraform/state first" in str(error), error
    else:
        raise AssertionError("a state bucket that is not there was taken")


def refused(stack: Stack, sentence: str, *arguments: str, verb: str = "plan") -> None:
    sure = ["-auto-approve"] if verb == "apply" else []
    try:
        with variables(AWS_MAX_ATTEMPTS="1"):
            said = stack.call(verb, "-input=false", "-no-color", *sure, *stack.variables, *arguments)
    except PipelineError as error:
        said = f"{stack.output} {error}"
        assert sentence in " ".join(said.replace("│", " ").split()), f"{arguments}: no word of: {sentence}"
    else:
        raise AssertionError(f"{arguments} was not refused: {said[-500:]}")


@contextmanager
def variables(**values: str | None) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    put(values)
    try:
        yield
    finally:
        put(before)


def put(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def locked(bucket: str, key: str) -> Iterator[None]:
    """The state's lock, as somebody else's apply holds it."""
    client = boto3.client("s3")
    lock = {"ID": "0", "Operation": "OperationTypeApply", "Who": "colleague@desk", "Version": "1.11.4", "Created": "2026-01-01T00:00:00Z"}
    client.put_object(Bucket=bucket, Key=f"{key}.tflock", Body=json.dumps(lock))
    try:
        yield
    finally:
        client.delete_object(Bucket=bucket, Key=f"{key}.tflock")


@contextmanager
def user_without(action: str) -> Iterator[None]:
    """A user who may do all but one thing; the emulator judges each call by the user's policy meanwhile."""
    iam = boto3.client("iam")
    iam.create_user(UserName="trainee")
    statements = [{"Effect": "Allow", "Action": "*", "Resource": "*"}, {"Effect": "Deny", "Action": action, "Resource": "*"}]
    iam.put_user_policy(
        UserName="trainee", PolicyName="most", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": statements})
    )
    key = iam.create_access_key(UserName="trainee")["AccessKey"]
    judge("0")
    try:
        with variables(AWS_ACCESS_KEY_ID=key["AccessKeyId"], AWS_SECRET_ACCESS_KEY=key["SecretAccessKey"]):
            yield
    finally:
        judge("inf")


def judge(free_calls: str) -> None:
    address = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    urllib.request.urlopen(urllib.request.Request(address, free_calls.encode(), {"Content-Type": "text/plain"})).close()
