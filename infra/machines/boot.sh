#!/bin/bash
# Sets up a machine once its code is there: boot.sh worker | control-plane. Run by cloud-init as root, on Ubuntu 22.04.
set -euo pipefail
code=/opt/bessemer/code
export DEBIAN_FRONTEND=noninteractive
id bessemer >/dev/null 2>&1 || useradd --system --home-dir /var/lib/bessemer --shell /usr/sbin/nologin bessemer
mkdir -p /var/lib/bessemer && chown bessemer: /var/lib/bessemer
apt-get update -q
apt-get install -q -y python3.11 python3.11-venv python3.11-dev build-essential

# Joins the machine's own fast disks into one. Their content is lost with the machine; everything that counts is in the bucket.
mount_scratch() {
  mkdir -p /scratch
  local disks
  if mountpoint -q /opt/dlami/nvme; then # AWS's Deep Learning image has joined and mounted them already
    mount --bind /opt/dlami/nvme /scratch
  else
    mapfile -t disks < <(lsblk -dpno NAME,MODEL | awk '/Instance Storage/ {print $1}')
    if [ "${#disks[@]}" -gt 1 ]; then
      apt-get install -q -y mdadm
      mdadm --create /dev/md0 --level=0 --raid-devices="${#disks[@]}" --run "${disks[@]}"
      disks=(/dev/md0)
    fi
    if [ "${#disks[@]}" -eq 1 ]; then
      mkfs.ext4 -q -F -E nodiscard "${disks[0]}"
      mount -o noatime "${disks[0]}" /scratch
    fi # none: the root volume serves
  fi
  mkdir -p /scratch/{home,tmp,cache} && chown -R bessemer: /scratch/{home,tmp,cache}
}

case "$1" in
  worker)
    mount_scratch
    nvidia-smi --list-gpus | grep -q GPU || { echo "boot: the driver sees no GPU; take an image with NVIDIA's driver (ami_id)" >&2; exit 1; }
    mkdir -p "$code/.cache" && PYTHON=python3.11 TORCH=gpu TMPDIR=/scratch/tmp bash "$code/deployments/setup.sh"
    chown -R bessemer: "$code"
    units=(bessemer-worker.service bessemer-spot.service)
    ;;
  control-plane)
    apt-get install -q -y nginx openssl
    python3.11 -m venv /opt/bessemer/venv
    /opt/bessemer/venv/bin/pip install -q -c <(grep -oE '^[a-z0-9.-]+==[^ ]+' "$code/deployments/locks/run.lock") prefect asyncpg boto3 psutil pyyaml
    set -a && . <(grep -v ARGUMENTS /etc/bessemer/environment) && set +a
    PYTHONPATH=$code /opt/bessemer/venv/bin/python -m infra.machines.prefect_server prepare
    install -m 644 "$code/infra/machines/cloud-init/nginx.conf" /etc/nginx/sites-enabled/default
    systemctl restart nginx
    units=(bessemer-prefect.service bessemer-scaler.service bessemer-rotate.timer)
    install -m 644 "$code/infra/machines/systemd/bessemer-rotate.service" /etc/systemd/system/
    ;;
  *) echo "usage: boot.sh worker | control-plane" >&2; exit 2 ;;
esac

for unit in "${units[@]}"; do install -m 644 "$code/infra/machines/systemd/$unit" /etc/systemd/system/; done
systemctl daemon-reload
systemctl enable --now "${units[@]}"
