"""The machines' description: formatted, valid, and planned against a provider that asks nobody (infra/terraform/tests/plan.tftest.hcl)."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra" / "terraform"
# Where Debian's, HashiCorp's and this project's CI keep providers for machines without the registry.
MIRRORS = [os.environ.get("TF_PLUGIN_MIRROR", ""), "/usr/share/terraform/plugins", "/opt/tf-plugins"]


class Terraform:
    """Terraform with its working files, and its lock on them, in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.variables = {**os.environ, "TF_DATA_DIR": str(folder / "data"), "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
        mirror = next((each for each in MIRRORS if each and (Path(each) / "registry.terraform.io/hashicorp/aws").is_dir()), None)
        if mirror:
            config = folder / "terraform.rc"
            config.write_text(f'provider_installation {{\n  filesystem_mirror {{ path = "{mirror}" }}\n}}\n')
            self.variables["TF_CLI_CONFIG_FILE"] = str(config)

    def __call__(self, *arguments: str, folder: Path = INFRA) -> subprocess.CompletedProcess[str]:
        command = ["terraform", f"-chdir={folder}", *arguments]
        return subprocess.run(command, env=self.variables, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not on PATH (1.11 or newer)")
    terraform = Terraform(tmp_path_factory.mktemp("terraform"))
    done = terraform("init", "-backend=false", "-lockfile=readonly", "-no-color")
    if done.returncode:
        pytest.skip(f"the AWS provider cannot be had (TF_PLUGIN_MIRROR may name a mirror of it): {done.stderr.strip()[-300:]}")
    return terraform


def test_it_is_formatted(terraform: Terraform):
    done = terraform("fmt", "-check", "-recursive", "-diff")
    assert done.returncode == 0, done.stdout


def test_it_is_valid(terraform: Terraform):
    done = terraform("validate", "-no-color")
    assert done.returncode == 0, done.stderr


def test_plans_hold_what_they_promise(terraform: Terraform):
    done = terraform("test", "-no-color")
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"Success! (\d+) passed, 0 failed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) == (INFRA / "tests" / "plan.tftest.hcl").read_text().count('\nrun "')


@pytest.mark.parametrize("preset", ["124m", "350m", "1b"])
def test_an_example_has_the_gpus_that_its_preset_runs_on(preset: str):
    ranks = yaml.safe_load((ROOT / "deployments" / "presets" / f"{preset}.yaml").read_text())["run"].get("ranks", 1)
    example = (INFRA / "examples" / f"{preset}.tfvars").read_text()
    found = re.search(r"^gpus += (\d+)$", example, re.MULTILINE)
    assert found and int(found[1]) == ranks


def test_no_price_is_committed():
    """Prices differ by region and day, and published ones contradict each other: the user gives them, with their date."""
    for path in [*INFRA.glob("examples/*.tfvars"), *INFRA.glob("environments/*/*.tfvars")]:
        assert not re.search(r"^\s*prices\s*=", path.read_text(), re.MULTILINE), path
