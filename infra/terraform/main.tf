# What `prefect deployment run pretrain/full -p preset=350m` needs beyond a laptop: a data bucket, a Prefect server, and machines with GPUs
# that are there while runs wait and gone when none does. Each machine takes runs of its own; with span_machines a run
# may ask for several (run.nodes), which join it as runs of join/gpu.

locals {
  name              = "${var.project}-${var.environment}"
  own_control_plane = var.prefect_api_url == null

  # One name for what three modules must agree on before the others exist: permissions are limited to these groups.
  group_names = { for market in ["spot", "on-demand"] : market => "${local.name}-gpu-${market}" }
}

data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}

data "aws_ec2_instance_type" "each" {
  for_each      = toset(var.instance_types)
  instance_type = each.value

  lifecycle {
    postcondition {
      condition     = sum(concat([0], [for gpu in self.gpus : gpu.count])) == var.gpus
      error_message = "${each.value} has ${sum(concat([0], [for gpu in self.gpus : gpu.count]))} GPUs and the variable gpus says ${var.gpus} (run.ranks of the preset): take another type, or set both to the same."
    }
  }
}

module "network" {
  source = "./modules/network"

  name       = local.name
  region     = var.region
  vpc_id     = var.vpc_id
  subnet_ids = var.subnet_ids
  cidr       = var.vpc_cidr

  span_machines = var.span_machines
}

module "storage" {
  source = "./modules/storage"

  bucket        = var.bucket
  create_bucket = var.create_bucket
  delete_data   = var.delete_data
  prefix        = var.prefix
  archive       = var.code_archive
}

module "iam" {
  source = "./modules/iam"

  name                = local.name
  partition           = data.aws_partition.this.partition
  account             = data.aws_caller_identity.this.account_id
  region              = var.region
  bucket_arn          = module.storage.bucket_arn
  prefix              = var.prefix
  read_prefixes       = var.read_prefixes
  group_names         = values(local.group_names)
  secret_arn          = local.own_control_plane ? module.control_plane[0].secret_arn : var.prefect_secret_arn
  database_secret_arn = local.own_control_plane ? module.control_plane[0].database_secret_arn : null
  worker_profile      = var.worker_instance_profile
  control_plane       = local.own_control_plane
  control_plane_role  = var.control_plane_role
}

module "control_plane" {
  source = "./modules/control_plane"
  count  = local.own_control_plane ? 1 : 0

  name               = local.name
  region             = var.region
  vpc_id             = module.network.vpc_id
  subnet_ids         = module.network.subnet_ids
  public_ip          = var.public_ip
  client_group_id    = module.network.worker_security_group_id
  allowed_cidrs      = var.control_plane_allowed_cidrs
  instance_profile   = module.iam.control_plane_profile
  instance_type      = var.control_plane_instance_type
  ami_id             = var.control_plane_ami_id
  database_class     = var.database_class
  database_gb        = var.database_gb
  backup_days        = var.database_backup_days
  multi_az           = var.database_multi_az
  protect            = var.protect
  release_uri        = module.storage.release_uri
  release_sha256     = module.storage.release_sha256
  alarm_topic_arn    = module.budget.topic_arn
  stop_policy_arn    = module.budget.stop_policy_arn
  group_names        = local.group_names
  pool               = var.pool
  fallback_minutes   = var.on_demand_fallback_minutes
  idle_minutes       = var.idle_minutes
  scaler_role_name   = module.iam.control_plane_role
  user_data_template = "${path.module}/../../infra/machines/cloud-init/control-plane.yaml.tftpl"
  fetch_script       = file("${path.module}/../../infra/machines/cloud-init/fetch.sh")
}

module "gpu_workers" {
  source = "./modules/gpu_workers"

  region             = var.region
  group_names        = local.group_names
  subnet_ids         = module.network.subnet_ids
  security_group_ids = [module.network.worker_security_group_id]
  public_ip          = var.public_ip
  instance_profile   = module.iam.worker_profile
  ami_id             = var.ami_id
  instance_types     = [for type in var.instance_types : data.aws_ec2_instance_type.each[type].instance_type] # after their check
  max_machines       = var.max_machines
  root_gb            = var.root_gb
  pool               = var.pool
  prefect_api_url    = local.own_control_plane ? module.control_plane[0].api_url : var.prefect_api_url
  prefect_secret     = local.own_control_plane ? module.control_plane[0].secret_arn : var.prefect_secret_arn
  storage_root       = "s3://${var.bucket}/${var.prefix}"
  release_uri        = module.storage.release_uri
  release_sha256     = module.storage.release_sha256
  tags               = merge(var.tags, { Project = var.project, Environment = var.environment })
  user_data_template = "${path.module}/../../infra/machines/cloud-init/worker.yaml.tftpl"
  fetch_script       = file("${path.module}/../../infra/machines/cloud-init/fetch.sh")
}

module "budget" {
  source = "./modules/budget"

  name          = local.name
  partition     = data.aws_partition.this.partition
  account       = data.aws_caller_identity.this.account_id
  project       = var.project
  monthly_limit = var.monthly_budget_usd
  emails        = var.alarm_emails
  scaler_role   = local.own_control_plane ? module.iam.control_plane_role : var.scaler_role
}
