"""Prepares and runs the Prefect server on its machine, with two passwords: the server's and the database's.

    python -m infra.machines.prefect_server prepare | serve | restart-if-rotated        settings: /etc/bessemer/environment

prepare (root, on the first boot): makes a self-signed certificate for BESSEMER_ADDRESS and, unless there is one, a password. Both go to the
secret BESSEMER_SECRET, where workers read them. The key stays on the machine. serve: runs the server on loopback, on the database.
restart-if-rotated (root): AWS rotates the database's password, and the server reads it only at its start.
"""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
from botocore.exceptions import ClientError

TLS = Path("/etc/bessemer/tls")
SERVED = Path("/var/lib/bessemer/database-password-version")


def prepare(folder: Path = TLS) -> None:
    client = boto3.client("secretsmanager")
    known = current(client, os.environ["BESSEMER_SECRET"])
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    if not (key.exists() and certificate.exists()):
        address = os.environ["BESSEMER_ADDRESS"]
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650"]
        command += ["-subj", "/CN=bessemer-prefect", "-addext", f"subjectAltName=IP:{address},DNS:localhost,IP:127.0.0.1"]
        subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
        key.chmod(0o600)
    wanted = {"auth": known.get("auth") or f"bessemer:{secrets.token_urlsafe(32)}", "certificate": certificate.read_text()}
    if known != wanted:
        client.put_secret_value(SecretId=os.environ["BESSEMER_SECRET"], SecretString=json.dumps(wanted))


def current(client: Any, arn: str) -> dict[str, str]:
    try:
        return json.loads(client.get_secret_value(SecretId=arn)["SecretString"])
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":  # made by Terraform, without a value yet
            return {}
        raise


def serve() -> None:
    client = boto3.client("secretsmanager")
    answer = client.get_secret_value(SecretId=os.environ["BESSEMER_DATABASE_SECRET"])
    SERVED.write_text(answer["VersionId"])
    login = json.loads(answer["SecretString"])
    user, password = (quote(login[each], safe="") for each in ("username", "password"))
    os.environ |= {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{user}:{password}@{os.environ['BESSEMER_DATABASE']}:5432/prefect?ssl=require",
        "PREFECT_SERVER_API_AUTH_STRING": current(client, os.environ["BESSEMER_SECRET"])["auth"],
        "PREFECT_UI_API_URL": "/api",
    }
    os.execv(sys.executable, [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", "4200"])


def restart_if_rotated() -> None:
    version = boto3.client("secretsmanager").get_secret_value(SecretId=os.environ["BESSEMER_DATABASE_SECRET"])["VersionId"]
    if SERVED.exists() and SERVED.read_text() != version:
        print("server: the database has a new password, restarting", flush=True)
        subprocess.run(["systemctl", "restart", "bessemer-prefect"], check=True)


if __name__ == "__main__":
    verbs = {"prepare": prepare, "serve": serve, "restart-if-rotated": restart_if_rotated}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        sys.exit("usage: python -m infra.machines.prefect_server prepare | serve | restart-if-rotated")
    verbs[sys.argv[1]]()
