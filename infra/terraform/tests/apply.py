"""Applies the whole stack to an AWS API emulator over HTTP: plan, apply, a second plan that changes nothing, destroy, and what is left.

    python infra/terraform/tests/apply.py [PRESET] [dev | prod]

By the functions that `make deploy-workers` uses, on a copy with one file more, in which the provider asks once instead of retrying.
Also: what is said of what cannot be (refusals.py), each with its fix. About five minutes, most of them the provider's own waits.
"""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import boto3

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT)]

from contract.errors import PipelineError  # noqa: E402
from infra.machines.deploy_workers import Stack  # noqa: E402
from infra.terraform.tests.refusals import refusals  # noqa: E402
from tests.infra.test_terraform import MIRRORS  # noqa: E402

OVERRIDE = """
provider "aws" {
  max_retries                 = 1 # a call that the emulator lacks would else be tried for ten minutes
  s3_use_path_style           = true
  skip_credentials_validation = true
}
"""
IMAGE = "ami-12c6146b"  # one that the emulator knows


def main(preset: str, environment: str) -> None:
    with tempfile.TemporaryDirectory(prefix="bessemer-apply-") as name:
        folder = Path(name)
        emulator = start_emulator(folder)
        try:
            check(folder, preset, environment)
        except BaseException:
            print("".join((folder / "emulator.log").read_text().splitlines(keepends=True)[-30:]), file=sys.stderr)
            raise
        finally:
            emulator.terminate()
            emulator.wait(20)


def start_emulator(folder: Path) -> subprocess.Popen[bytes]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mirror = next((each for each in MIRRORS if each and Path(each).is_dir()), None)
    if mirror:
        (folder / "terraform.rc").write_text(f'provider_installation {{\n  filesystem_mirror {{ path = "{mirror}" }}\n}}\n')
        os.environ["TF_CLI_CONFIG_FILE"] = str(folder / "terraform.rc")
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "TF_DATA_DIR": str(folder / "data")}
    command = [sys.executable, str(Path(__file__).parent / "moto_ext.py"), "-H", "127.0.0.1", "-p", str(port)]
    variables = os.environ | {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}
    with open(folder / "emulator.log", "wb") as log:
        emulator = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=2)
            return emulator
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the emulator did not start")


def check(folder: Path, preset: str, environment: str) -> None:
    subprocess.run(["cp", "-r", str(ROOT / "infra"), str(folder)], check=True)
    infra = folder / "infra" / "terraform"
    (infra / "moto_override.tf").write_text(OVERRIDE)
    mark = secrets.token_hex(3)
    make_state_bucket(infra / "state", f"state-{mark}")
    example = infra / "examples" / f"{preset}.tfvars"
    own = [f"bucket=team-{mark}", 'alarm_emails=["team@example.com"]', f"ami_id={IMAGE}", f"control_plane_ami_id={IMAGE}"]
    own.append(f"code_archive={infra / 'versions.tf'}")
    stack = Stack(environment, [f"-var-file={example}", *(f"-var={each}" for each in own)], infra)
    before = seen()
    step("init, the state in a bucket with its lock")
    backend = [f"bucket=state-{mark}", "region=us-east-1", "use_path_style=true", "skip_credentials_validation=true"]
    stack.init(*backend)
    step("what cannot be is refused with its fix")
    refusals(stack, f"state-{mark}")
    stack.init(*backend)
    step("plan and apply")
    stack.plan(folder / "plan")
    outputs = stack.apply(folder / "plan")
    assert outputs["storage_root"] == f"s3://team-{mark}/runs", outputs
    assert seen()["groups"] == {f"bessemer-{environment}-gpu-spot": 0, f"bessemer-{environment}-gpu-on-demand": 0}, seen()
    step("a second plan")
    changes = stack.call("plan", "-input=false", "-no-color", *stack.variables)
    assert "No changes." in changes, "a second apply would change something"
    if environment == "prod":
        step("the database lets itself be deleted once protect is false")
        stack.variables.append("-var=protect=false")
        stack.plan(folder / "plan")
        stack.apply(folder / "plan")
    step("destroy, the data kept")
    assert stack.keep_data()
    stack.destroy()
    left = {kind: found for kind, found in seen().items() if found != before[kind]}
    assert list(left) == ["buckets"] and left["buckets"] == {*before["buckets"], f"team-{mark}"}, left
    step("the same bucket name again, as the kept one is")
    own_again = Stack(
        environment, [*stack.variables[1:], "-var=region=eu-central-1"], infra
    )  # us-east-1 alone lets its owner make it twice
    try:
        own_again.call(
            "apply", "-input=false", "-auto-approve", "-no-color", "-target=module.storage.aws_s3_bucket.data", *own_again.variables
        )
    except PipelineError as error:
        assert "create_bucket = false" in str(error), error
    else:
        raise AssertionError("a bucket that is there was made again")
    print("apply: all held")


def make_state_bucket(folder: Path, name: str) -> None:
    """As operations.md has it: init and apply of state/, once and by hand."""
    step("the state bucket")
    (folder / "moto_override.tf").write_text(OVERRIDE)
    own = os.environ | {"TF_DATA_DIR": str(folder / "data")}
    for arguments in (["init", "-input=false"], ["apply", "-input=false", "-auto-approve", "-var=region=us-east-1", f"-var=bucket={name}"]):
        subprocess.run(["terraform", f"-chdir={folder}", *arguments], env=own, check=True)


def seen() -> dict[str, Any]:
    """What costs money or opens a door, by kind."""
    ec2, iam = boto3.client("ec2"), boto3.client("iam")
    instances = [each for page in ec2.describe_instances()["Reservations"] for each in page["Instances"]]
    return {
        "groups": {
            each["AutoScalingGroupName"]: each["DesiredCapacity"]
            for each in boto3.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
        },
        "instances": {each["InstanceId"] for each in instances if each["State"]["Name"] not in ("terminated", "shutting-down")},
        "templates": {each["LaunchTemplateName"] for each in ec2.describe_launch_templates()["LaunchTemplates"]},
        "networks": {each["VpcId"] for each in ec2.describe_vpcs()["Vpcs"]},
        "addresses": {each["AllocationId"] for each in ec2.describe_addresses()["Addresses"]},
        "databases": {each["DBInstanceIdentifier"] for each in boto3.client("rds").describe_db_instances()["DBInstances"]},
        "secrets": {
            each["Name"] for each in boto3.client("secretsmanager").list_secrets()["SecretList"] if each["Name"].startswith("bessemer")
        },
        "roles": {each["RoleName"] for each in iam.list_roles()["Roles"]},
        "topics": {each["TopicArn"] for each in boto3.client("sns").list_topics()["Topics"]},
        "buckets": {each["Name"] for each in boto3.client("s3").list_buckets()["Buckets"]},
    }


def step(name: str) -> None:
    print(f"\n==== {time.strftime('%H:%M:%S')} {name}", flush=True)


if __name__ == "__main__":
    try:
        main(*(sys.argv[1:] + ["124m", "dev"][len(sys.argv) - 1 :]))
    except (AssertionError, PipelineError) as error:
        sys.exit(f"apply: {error}")
