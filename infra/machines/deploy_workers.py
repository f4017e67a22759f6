"""Makes and destroys the GPU machines of one environment: `make deploy-workers ENV=dev` and `make destroy-workers ENV=dev`.

    python -m infra.machines.deploy_workers apply dev --vars my.tfvars --state-bucket BUCKET --region REGION
    python -m infra.machines.deploy_workers destroy dev …        the data bucket is kept

apply: archives HEAD, runs terraform init, shows the plan and asks, applies, then makes the pool and its queues if it reaches the server.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from contract.errors import InputError, PipelineError
from services.prefect_api import GPU_QUEUES, Api

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra" / "terraform"
KEPT = "module.storage.aws_s3_bucket"
FIXES = {
    "BucketAlreadyExists": "the bucket's name is in use by somebody else: choose another one (bucket)",
    "BucketAlreadyOwnedByYou": "the bucket is yours already: set create_bucket = false to use it as it is",
    "AccessDenied": "your AWS user lacks that permission: ask the account's administrator for the action named above",
    "UnauthorizedOperation": "your AWS user lacks that permission: ask the account's administrator for the action named above",
    "InvalidAMIID": "ami_id is not in this region: images have other ids elsewhere; unset it to take AWS's own",
    "VcpuLimitExceeded": "the account's quota for these machines is too low: raise it in Service Quotas (EC2, G or P instances)",
    "NoSuchBucket": "the state bucket is not there: apply infra/terraform/state first (docs/operations.md)",
    "No valid credential sources found": "no AWS credentials were found: aws configure, or AWS_PROFILE",
    "InvalidInstanceType": "the region does not rent this instance type: take another type (instance_types) or another region",
    "Error acquiring the state lock": "somebody else is at work on this environment: wait for their apply. A lock that a crash has left: "
    "terraform force-unlock with the ID above",
    "ExpiredToken": "the AWS credentials have expired: sign in again",
}


def fixes(output: str) -> list[str]:
    return list(dict.fromkeys(sentence for code, sentence in FIXES.items() if code in output))


class Stack:
    """Terraform for one environment, with its own working files."""

    def __init__(self, environment: str, variables: list[str], infra: Path = INFRA) -> None:
        self.environment, self.infra = environment, infra
        own = infra / "environments" / environment
        if not own.is_dir():
            raise InputError(
                f"there is no environment {environment}; ENV is one of {', '.join(sorted(each.name for each in own.parent.iterdir()))}"
            )
        self.variables = [f"-var-file={own / 'terraform.tfvars'}", *variables]
        data = os.environ.get("TF_DATA_DIR") or str(infra / ".terraform" / environment)
        self.own = {"TF_DATA_DIR": data, "TF_IN_AUTOMATION": "1"}
        self.output = ""
        """Terraform's last output."""

    def call(self, *arguments: str) -> str:
        """Run Terraform and show its output as it comes. An error ends with what to do about it."""
        done = subprocess.Popen(
            ["terraform", f"-chdir={self.infra}", *arguments],
            env=os.environ | self.own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines = []
        assert done.stdout is not None
        for line in done.stdout:
            lines.append(line)
            print(line, end="", flush=True)
        self.output = "".join(lines)
        if done.wait():
            advice = "".join(f"\n  {sentence}" for sentence in fixes(self.output))
            raise PipelineError(f"terraform {arguments[0]} ended with {done.returncode}{advice}")
        return self.output

    def quiet(self, *arguments: str) -> str:
        command = ["terraform", f"-chdir={self.infra}", *arguments]
        done = subprocess.run(command, env=os.environ | self.own, capture_output=True, text=True)
        if done.returncode:
            raise PipelineError(f"terraform {arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    def init(self, *backend: str) -> None:
        settings = [
            f"-backend-config={self.infra / 'environments' / self.environment / 'backend.hcl'}",
            *(f"-backend-config={each}" for each in backend),
        ]
        self.call("init", "-input=false", "-reconfigure", "-no-color", *settings)

    def plan(self, file: Path) -> None:
        self.call("plan", "-input=false", f"-out={file}", *self.variables)

    def apply(self, file: Path) -> dict[str, Any]:
        self.call("apply", "-input=false", str(file))
        return {name: each["value"] for name, each in json.loads(self.quiet("output", "-json")).items()}

    def keep_data(self) -> list[str]:
        """Take the data bucket and its settings out of the state, so that a teardown does not touch them; returns their addresses."""
        kept = [line for line in self.quiet("state", "list").splitlines() if line.startswith(KEPT)]
        if kept:
            self.quiet("state", "rm", *kept)
        return kept

    def destroy(self) -> None:
        self.call("destroy", "-input=false", "-auto-approve", *self.variables)


def archive(folder: Path) -> Path:
    """Archive HEAD as one file. gzip writes no time, so the same commit gives the same bytes."""
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    if dirty:
        print("note: what is not committed is not deployed", flush=True)
    file = folder / "bessemer.tar.gz"
    with open(file, "wb") as out:
        tar = subprocess.run(["git", "archive", "--format=tar", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["gzip", "-9n"], input=tar, stdout=out, check=True)
    return file


def tunnel(outputs: dict[str, Any]) -> str:
    parameters = json.dumps({"portNumber": ["443"], "localPortNumber": ["4443"]})
    return (
        f"aws ssm start-session --region {outputs['region']} --target {outputs['control_plane_instance_id']} "
        f"--document-name AWS-StartPortForwardingSession --parameters '{parameters}'"
    )


def apply(stack: Stack, sure: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="bessemer-deploy-") as folder:
        stack.variables.append(f"-var=code_archive={archive(Path(folder))}")
        stack.plan(Path(folder) / "plan")
        if not sure and input("Apply this plan? It costs money from then on. Type yes: ").strip() != "yes":
            raise InputError("nothing was changed")
        outputs = stack.apply(Path(folder) / "plan")
    url = os.environ.get("PREFECT_API_URL") or outputs["prefect_api_url"]
    api = Api(url)
    if api.is_healthy():
        api.make_pool(outputs["pool"], GPU_QUEUES)
        print(f"pool {outputs['pool']} with the queues {' and '.join(GPU_QUEUES)} is at {url}", flush=True)
        return
    print(f"the pool is not made yet: {url} cannot be reached from here. Open the way, then run this again with PREFECT_API_URL:")
    if outputs.get("control_plane_instance_id"):
        print(f"  {tunnel(outputs)}\n  PREFECT_API_URL=https://localhost:4443/api")
        print(f"  password and certificate: secret {outputs['prefect_secret_arn']}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.machines.deploy_workers",
        description="The GPU machines of one environment.",
    )
    parser.add_argument("verb", choices=["apply", "destroy"])
    parser.add_argument("environment")
    parser.add_argument("--vars", type=Path, required=True, help="your tfvars, made from one of infra/terraform/examples")
    parser.add_argument("--state-bucket", required=True)
    parser.add_argument("--region", required=True, help="of the state bucket")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_args()
    try:
        if shutil.which("terraform") is None:
            raise InputError("terraform is not on PATH: 1.11 or newer is needed")
        if not options.vars.is_file():
            raise InputError(f"{options.vars} is not there; copy one of {INFRA / 'examples'} and put your names in")
        stack = Stack(options.environment, [f"-var-file={options.vars.resolve()}"])
        stack.init(f"bucket={options.state_bucket}", f"region={options.region}")
        if options.verb == "apply":
            apply(stack, options.yes)
        else:
            if not options.yes and input(f"Destroy {options.environment}? The data bucket is kept. Type yes: ").strip() != "yes":
                raise InputError("nothing was changed")
            stack.variables.append(f"-var=code_archive={INFRA / 'versions.tf'}")  # any file: nothing is uploaded
            kept = stack.keep_data()
            stack.destroy()
            print(f"{'the data bucket is kept; ' if kept else ''}the state bucket is infra/terraform/state's", flush=True)
    except PipelineError as error:
        print(f"deploy-workers: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
