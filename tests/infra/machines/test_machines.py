"""What a machine does before it works (code by its digest, password, versions), and what `make deploy-workers` makes."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import boto3
import pytest

from contract.errors import InputError
from infra.machines.connect import check, from_secret, read_secret
from infra.machines.deploy_workers import Stack, archive, fixes
from infra.machines.prefect_server import prepare
from services.code_version import code_digest
from services.prefect_api import GPU_QUEUES
from tests.infra.machines.worlds import Server

ROOT = Path(__file__).parents[3]
FETCH = ROOT / "infra" / "machines" / "cloud-init" / "fetch.sh"
# `aws s3 cp` as the machine has it, on the same S3 server over HTTP.
AWS = """#!{python}
import sys, boto3
bucket, key = sys.argv[-2].removeprefix("s3://").split("/", 1)
boto3.client("s3").download_file(bucket, key, sys.argv[-1])
"""


@pytest.fixture
def release(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """An archive in a bucket: its address and its digest."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "aws").write_text(AWS.format(python=sys.executable))
    (tmp_path / "bin" / "aws").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "code.txt").write_text("the code")
    with tarfile.open(tmp_path / "code.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "code.txt", "code.txt")
    content = (tmp_path / "code.tar.gz").read_bytes()
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="releases-test")
    client.put_object(Bucket="releases-test", Key="releases/code.tar.gz", Body=content)
    return "s3://releases-test/releases/code.tar.gz", hashlib.sha256(content).hexdigest()


def fetch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(FETCH), *arguments], capture_output=True, text=True, timeout=60)


def test_the_code_comes_when_its_digest_is_the_pinned_one(release: tuple[str, str], tmp_path: Path):
    done = fetch(*release, str(tmp_path / "code"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "code" / "code.txt").read_text() == "the code"


def test_other_bytes_are_refused_and_the_code_that_was_there_stays(release: tuple[str, str], tmp_path: Path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "code.txt").write_text("what was there")
    done = fetch(release[0], "0" * 64, str(tmp_path / "code"))
    assert done.returncode == 1
    assert "is not what was released" in done.stderr
    assert (tmp_path / "code" / "code.txt").read_text() == "what was there"


def test_worker_and_server_of_different_versions_refuse_each_other(prefect_server: Server):
    pool, deployments = prefect_server.pool()
    api, ours = prefect_server.api, api_version(prefect_server)
    here, other = "a" * 12, "b" * 12
    check(api, pool, here, ours)
    with pytest.raises(InputError, match=f"has Prefect {ours}, this machine 3.0.0"):
        check(api, pool, here, "3.0.0")
    flow = api.call("GET", f"/deployments/{deployments['spot']}")["flow_id"]
    body = {"name": "full", "flow_id": flow, "work_pool_name": pool, "work_queue_name": "spot", "version": other, "entrypoint": "a.py:a"}
    api.call("POST", "/deployments/", body)
    check(api, pool, other, ours)
    with pytest.raises(InputError, match=f"made from code {other}, this machine has {here}"):
        check(api, pool, here, ours)


def api_version(server: Server) -> str:
    return server.api.call("GET", "/admin/version")


def test_the_secret_gives_password_and_a_certificate_beside_the_usual_ones(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    value = {"auth": "bessemer:pw", "certificate": "-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n"}
    client = boto3.client("secretsmanager", region_name="us-east-1")
    arn = client.create_secret(Name=f"prefect-{tmp_path.name}", SecretString=json.dumps(value))["ARN"]
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    found = from_secret(read_secret(arn), tmp_path)
    assert found["PREFECT_API_AUTH_STRING"] == "bessemer:pw"
    bundle = Path(found["SSL_CERT_FILE"]).read_text()
    assert bundle.endswith(value["certificate"])
    assert found["PREFECT_API_SSL_CERT_FILE"] == found["SSL_CERT_FILE"]


def test_pools_are_made_once(prefect_server: Server):
    name = f"gpu-of-{os.getpid()}"
    for _ in range(2):
        prefect_server.api.make_pool(name, GPU_QUEUES)
    found = prefect_server.api.call("POST", f"/work_pools/{name}/queues/filter", {})
    assert {"on-demand", "spot"} <= {queue["name"] for queue in found}
    assert [pool["type"] for pool in prefect_server.api.pools() if pool["name"] == name] == ["process"]


def test_the_same_commit_is_the_same_archive_and_holds_what_a_machine_starts(tmp_path: Path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    first, second = (archive(make(tmp_path / each)) for each in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert {
            "prefect.yaml",
            "deployments/locks/gpu.lock",
            "deployments/worker.py",
            "deployments/setup.sh",
            "infra/machines/boot.sh",
        } <= set(tar.getnames())
    assert len(code_digest(ROOT)) == 12


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_an_error_of_aws_comes_with_its_fix():
    said = "Error: creating S3 Bucket (x): BucketAlreadyExists: The requested bucket name is not available"
    assert fixes(said) == ["the bucket's name is in use by somebody else: choose another one (bucket)"]
    denied = "UnauthorizedOperation: You are not authorized to perform: ec2:CreateVpc"
    assert "lacks that permission" in fixes(denied)[0]


def test_an_unknown_environment_is_named_with_those_there_are():
    with pytest.raises(InputError, match="no environment staging; ENV is one of dev, prod"):
        Stack("staging", [])


def test_the_server_makes_its_password_once_and_a_certificate_of_its_address(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("secretsmanager")
    monkeypatch.setenv("BESSEMER_SECRET", client.create_secret(Name=f"empty-{tmp_path.name}")["ARN"])
    monkeypatch.setenv("BESSEMER_ADDRESS", "10.42.0.10")
    prepare(tmp_path / "tls")
    made = read_secret(os.environ["BESSEMER_SECRET"])
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName"], input=made["certificate"], capture_output=True, text=True
    )
    assert "IP Address:10.42.0.10" in shown.stdout, shown
    assert (tmp_path / "tls" / "key.pem").stat().st_mode & 0o077 == 0
    assert "PRIVATE" not in json.dumps(made)
    prepare(tmp_path / "tls")
    assert read_secret(os.environ["BESSEMER_SECRET"]) == made
    prepare(tmp_path / "another machine's tls")
    replaced = read_secret(os.environ["BESSEMER_SECRET"])
    assert replaced["auth"] == made["auth"] and replaced["certificate"] != made["certificate"]
