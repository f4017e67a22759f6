# The bucket is the one that state/ made; `make deploy-workers` passes its name and region by STATE_BUCKET and REGION.
key = "dev/terraform.tfstate"
