"""Runs a command that needs the Prefect server: puts its password and certificate into the environment, then becomes the command.

    python -m infra.machines.connect [--check] -- COMMAND …          settings: /etc/bessemer/environment, as systemd hands them over

Both come from the secret that BESSEMER_SECRET names. `{name}` in the command is replaced by the worker's name, POOL-INSTANCE-ID. With
--check it refuses a server with another version of Prefect, and deployments made from other code than this machine's: a run must not be
split over two versions.
"""

import argparse
import importlib.metadata
import json
import os
import ssl
import sys
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from contract.errors import InputError, PipelineError
from infra.machines.instance_metadata import Metadata, MetadataDown
from services.code_version import code_digest, others
from services.prefect_api import Api

HOME = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.machines.connect",
        description="Runs a command with the Prefect server's password and certificate in its environment.",
    )
    parser.add_argument("--check", action="store_true", help="refuse a server of another version")
    parser.add_argument("--folder", type=Path, default=Path("/run/bessemer"), help="where the certificate is put")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    try:
        if arn := os.environ.get("BESSEMER_SECRET"):
            os.environ |= from_secret(read_secret(arn), options.folder)
        pool = os.environ.get("BESSEMER_POOL", "gpu")
        if options.check:
            check(Api(os.environ["PREFECT_API_URL"]), pool, code_digest(HOME), importlib.metadata.version("prefect"))
        wants_name = any("{name}" in part for part in options.command)
        name = f"{pool}-{Metadata().get('instance-id')}" if wants_name else ""
    except (PipelineError, MetadataDown) as error:
        print(f"connect: {error}", file=sys.stderr)
        return 2
    command = [part.replace("{name}", name) for part in options.command]
    os.execvp(command[0], command)
    raise AssertionError("execvp does not return")


def read_secret(arn: str) -> dict[str, str]:
    try:
        return json.loads(boto3.client("secretsmanager").get_secret_value(SecretId=arn)["SecretString"])
    except (ClientError, BotoCoreError, ValueError) as error:
        raise PipelineError(f"{arn} cannot be read ({error}); the server writes it on its first boot, minutes after the apply") from error


def from_secret(secret: dict[str, str], folder: Path) -> dict[str, str]:
    found = {}
    if secret.get("auth"):
        found["PREFECT_API_AUTH_STRING"] = secret["auth"]
    if secret.get("key"):
        found["PREFECT_API_KEY"] = secret["key"]
    if secret.get("certificate"):
        folder.mkdir(parents=True, exist_ok=True)
        bundle = folder / f"certificates-{os.getpid()}.pem"  # the server's own and the usual ones: other clients still work
        usual = ssl.get_default_verify_paths().cafile
        bundle.write_text((Path(usual).read_text() if usual else "") + "\n" + secret["certificate"])
        found |= {"SSL_CERT_FILE": str(bundle), "PREFECT_API_SSL_CERT_FILE": str(bundle)}
    return found


def check(api: Api, pool: str, code: str, prefect: str) -> None:
    server = api.call("GET", "/admin/version")  # None: Prefect Cloud, which speaks with every version
    if server is not None and server != prefect:
        raise InputError(
            f"the server at {api.url} has Prefect {server}, this machine {prefect}: apply again, so that both are of one release"
        )
    found = api.call("POST", "/deployments/filter", {"work_pools": {"name": {"any_": [pool]}}}) or []
    if other := others((each.get("version") for each in found), code):
        raise InputError(
            f"the deployments of the pool {pool} were made from code {', '.join(other)}, this machine has {code}: "
            "deploy from the release that the machines have (make deploy-workers does both)"
        )


if __name__ == "__main__":
    sys.exit(main())
