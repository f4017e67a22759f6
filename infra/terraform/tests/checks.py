"""What checkers say of the machines: checkov on the Terraform, cloud-init on the user data, systemd on the units.

    python infra/terraform/tests/checks.py

checkov and cloud-init are put into .cache/infra/ (cloud-init by apt-get: it is in no Python index). A check that cannot be made here fails,
and says what is missing. checkov's skips stand in the code, each with its reason.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MACHINES = ROOT / "infra" / "machines"
CACHE = ROOT / ".cache" / "infra"
PACKAGES = ["checkov==3.3.30", "configobj==5.0.9", "jsonpatch==1.33", "oauthlib==3.3.1"]  # the last three: cloud-init's
SKIP = re.compile(r"checkov:skip=\S+?(:|$)\s*(.*)")


def main() -> int:
    python = environment()
    failed = [check.__name__ for check in (skips, checkov, user_data, units) if not check(python)]
    print(f"checks: {', '.join(failed)} failed" if failed else "checks: all passed")
    return 1 if failed else 0


def environment() -> Path:
    """An environment of its own: checkov pins what the product needs newer."""
    python = CACHE / "venv" / "bin" / "python"
    stamp = CACHE / "packages.json"
    if not (stamp.exists() and json.loads(stamp.read_text()) == PACKAGES):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(CACHE / "venv")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
        stamp.write_text(json.dumps(PACKAGES))
    return python


def skips(_: Path) -> bool:
    """Every skip has a sentence."""
    bare = [
        f"{path}: {line.strip()}"
        for path in sorted((ROOT / "infra").rglob("*.tf"))
        for line in path.read_text().splitlines()
        if (found := SKIP.search(line)) and len(found[2].split()) < 4
    ]
    print("\n".join(["skips without a reason:", *bare]) if bare else "skips: each has its reason")
    return not bare


def checkov(python: Path) -> bool:
    command = [str(python.with_name("checkov")), "-d", str(ROOT / "infra" / "terraform"), "--framework", "terraform"]
    done = subprocess.run([*command, "--compact", "--quiet", "--skip-download"], capture_output=True, text=True)
    print(f"checkov: {done.stdout.strip()}")
    return done.returncode == 0 and "Passed checks" in done.stdout


def user_data(python: Path) -> bool:
    return all(schema_accepts(python, name, render(name)) for name in ("worker", "control-plane"))


def render(name: str) -> str:
    """The template with values of the kinds that the modules give it, by Terraform itself."""
    values = {
        "fetch_script": (MACHINES / "cloud-init" / "fetch.sh").read_text(), "region": "us-east-1", "group": "g", "pool": "gpu",
        "queues": ["spot"], "prefect_api_url": "https://10.42.0.10/api", "prefect_secret": "arn:a", "storage_root": "s3://b/runs",
        "release_uri": "s3://b/releases/x.tar.gz", "release_sha256": "0" * 64, "address": "10.42.0.10", "secret": "arn:a", "database": "d",
        "database_secret": "arn:d", "groups": {"spot": "s", "on-demand": "o"}, "fallback_minutes": 15, "idle_minutes": 10,
        "stop_policy": "arn:p", "scaler_role": "r",
    }  # fmt: skip
    template = MACHINES / "cloud-init" / f"{name}.yaml.tftpl"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "values.json").write_text(json.dumps(values))
        question = f'jsonencode(templatefile("{template}", jsondecode(file("{folder}/values.json"))))\n'
        done = subprocess.run(["terraform", f"-chdir={folder}", "console"], input=question, capture_output=True, text=True, check=True)
    return json.loads(json.loads(done.stdout))


def schema_accepts(python: Path, name: str, text: str) -> bool:
    assert text.startswith("#cloud-config\n")
    library = cloud_init()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        command = [str(python), "-m", "cloudinit.cmd.main", "schema", "--config-file", file.name]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(library)}, capture_output=True, text=True)
    print(f"cloud-init {name}: {(done.stdout + done.stderr).strip()}")
    return done.returncode == 0 and "Valid" in done.stdout


def cloud_init() -> Path:
    folder = CACHE / "cloud-init"
    library = folder / "usr" / "lib" / "python3" / "dist-packages"
    if not library.is_dir():
        if shutil.which("apt-get") is None:
            raise SystemExit("checks: cloud-init's package is fetched by apt-get, which is not here")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", "cloud-init"], cwd=folder, check=True, capture_output=True)
        (package,) = folder.glob("cloud-init_*.deb")
        subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True)
    return library


def units(_: Path) -> bool:
    """Of copies in which our interpreters, which only a machine has, are this one."""
    if shutil.which("systemd-analyze") is None:
        print("systemd-analyze is not on PATH")
        return False
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for unit in sorted((MACHINES / "systemd").iterdir()):
            copy = Path(folder) / unit.name
            copy.write_text(
                re.sub(r"^(ExecStart=)/opt/bessemer/\S+/python", rf"\g<1>{sys.executable}", unit.read_text(), flags=re.MULTILINE)
            )
            copies.append(str(copy))
        done = subprocess.run(["systemd-analyze", "verify", "--recursive-errors=one", "--man=no", *copies], capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip()
    print(f"systemd: {said or f'{len(copies)} units, nothing to say'}")
    return done.returncode == 0 and not said  # it ends with 0 on keys that it does not know


if __name__ == "__main__":
    sys.exit(main())
