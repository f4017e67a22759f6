# A Prefect server on PostgreSQL, and the scaler beside it. nginx ends TLS; the server asks for a password. Both the certificate and the
# password are made by the machine on its first boot and kept in one secret, so neither is in the state. Inbound: 443 from the workers, and
# from allowed_cidrs; people come by SSM port forwarding.

locals {
  ami_id     = var.ami_id != null ? var.ami_id : nonsensitive(data.aws_ssm_parameter.ami[0].value)
  private_ip = cidrhost(data.aws_subnet.first.cidr_block, 10) # fixed: a replaced machine keeps its address, which workers know it by
  api_url    = "https://${local.private_ip}/api"
}

data "aws_ssm_parameter" "ami" {
  count = var.ami_id == null ? 1 : 0
  name  = "/aws/service/canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id"
}

data "aws_subnet" "first" {
  id = var.subnet_ids[0]
}

# ---------------------------------------------------------------- who may talk to whom

resource "aws_security_group" "server" {
  name        = "${var.name}-prefect"
  description = "Prefect server: 443 from the workers"
  vpc_id      = var.vpc_id
  tags        = { Name = "${var.name}-prefect" }
}

resource "aws_vpc_security_group_ingress_rule" "workers" {
  security_group_id            = aws_security_group.server.id
  description                  = "workers"
  referenced_security_group_id = var.client_group_id
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
}

resource "aws_vpc_security_group_ingress_rule" "people" {
  for_each = toset(var.allowed_cidrs)

  security_group_id = aws_security_group.server.id
  description       = "people"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_egress_rule" "out" {
  for_each = { https = 443, http = 80 }

  security_group_id = aws_security_group.server.id
  description       = "${each.key} to anywhere"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = each.value
  to_port           = each.value
}

resource "aws_vpc_security_group_egress_rule" "database" {
  security_group_id            = aws_security_group.server.id
  description                  = "database"
  referenced_security_group_id = aws_security_group.database.id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "PostgreSQL: 5432 from the Prefect server"
  vpc_id      = var.vpc_id
  tags        = { Name = "${var.name}-database" }
}

resource "aws_vpc_security_group_ingress_rule" "database" {
  security_group_id            = aws_security_group.database.id
  description                  = "Prefect server"
  referenced_security_group_id = aws_security_group.server.id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

# ---------------------------------------------------------------- database

resource "aws_db_subnet_group" "this" {
  name       = var.name
  subnet_ids = var.subnet_ids
}

resource "aws_db_instance" "this" {
  # checkov:skip=CKV_AWS_157: a second zone doubles the price; database_multi_az turns it on (prod does), and runs go on while the server is away
  # checkov:skip=CKV_AWS_293: protect decides, so that a teardown is possible (prod sets it)
  # checkov:skip=CKV_AWS_161: IAM tokens last 15 minutes and Prefect takes its password once, at its start
  # checkov:skip=CKV_AWS_118: enhanced monitoring costs by the instance, and the server's load is a few requests a second
  # checkov:skip=CKV_AWS_129: its logs say what the Prefect server's say, which stay on the machine
  # checkov:skip=CKV2_AWS_30: a log of every statement of the Prefect server tells nobody anything, and fills the disk
  # checkov:skip=CKV_AWS_353: the smallest classes have no performance insights
  identifier     = var.name
  engine         = "postgres"
  engine_version = "16" # since 15 AWS's own parameters refuse a connection without TLS
  instance_class = var.database_class
  db_name        = "prefect"
  username       = "prefect"

  manage_master_user_password = true # made, kept and rotated by AWS: not in the state

  allocated_storage          = var.database_gb
  storage_type               = "gp3"
  storage_encrypted          = true
  multi_az                   = var.multi_az
  publicly_accessible        = false
  db_subnet_group_name       = aws_db_subnet_group.this.name
  vpc_security_group_ids     = [aws_security_group.database.id]
  auto_minor_version_upgrade = true
  backup_retention_period    = var.backup_days
  copy_tags_to_snapshot      = true
  deletion_protection        = var.protect
  skip_final_snapshot        = !var.protect
  final_snapshot_identifier  = var.protect ? "${var.name}-last" : null
  delete_automated_backups   = !var.protect
}

# ---------------------------------------------------------------- server

resource "aws_secretsmanager_secret" "prefect" {
  # checkov:skip=CKV_AWS_149: the account's own key for secrets serves; a key of ours would add a dollar a month and no other reader
  # checkov:skip=CKV2_AWS_57: the server makes it; operations.md says how to make it anew, which restarts every worker
  name_prefix             = "${var.name}-prefect-"
  description             = "JSON: auth (user:password) and certificate (PEM) of the Prefect server, which writes them on its first boot"
  recovery_window_in_days = var.protect ? 7 : 0
}

resource "aws_instance" "server" {
  # checkov:skip=CKV_AWS_88: an address of its own spares a NAT gateway; inbound is closed but for 443 from the workers
  # checkov:skip=CKV_AWS_126: detailed monitoring costs by the month, and status checks come every minute without it
  ami                         = local.ami_id
  instance_type               = var.instance_type
  subnet_id                   = var.subnet_ids[0]
  private_ip                  = local.private_ip
  associate_public_ip_address = var.public_ip
  vpc_security_group_ids      = [aws_security_group.server.id]
  iam_instance_profile        = var.instance_profile
  ebs_optimized               = true
  user_data_replace_on_change = true
  tags                        = { Name = "${var.name}-prefect" }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    volume_size = 20
    volume_type = "gp3"
    encrypted   = true
  }

  user_data_base64 = base64gzip(templatefile(var.user_data_template, {
    fetch_script     = var.fetch_script
    region           = var.region
    address          = local.private_ip
    secret           = aws_secretsmanager_secret.prefect.arn
    database         = aws_db_instance.this.address
    database_secret  = aws_db_instance.this.master_user_secret[0].secret_arn
    release_uri      = var.release_uri
    release_sha256   = var.release_sha256
    pool             = var.pool
    groups           = var.group_names
    fallback_minutes = var.fallback_minutes
    idle_minutes     = var.idle_minutes
    stop_policy      = var.stop_policy_arn
    scaler_role      = var.scaler_role_name
  }))
}

# ---------------------------------------------------------------- alarms

resource "aws_cloudwatch_metric_alarm" "server" {
  alarm_name          = "${var.name}-server-down"
  alarm_description   = "The Prefect server's machine fails its checks: no run starts and no group shrinks. AWS restarts it on other hardware."
  namespace           = "AWS/EC2"
  metric_name         = "StatusCheckFailed_System"
  dimensions          = { InstanceId = aws_instance.server.id }
  statistic           = "Maximum"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  period              = 60
  evaluation_periods  = 3
  alarm_actions       = [var.alarm_topic_arn, "arn:${data.aws_partition.this.partition}:automate:${var.region}:ec2:recover"]
}

resource "aws_cloudwatch_metric_alarm" "database" {
  alarm_name          = "${var.name}-database-full"
  alarm_description   = "Less than 2 GB are free in Prefect's database: raise database_gb and apply."
  namespace           = "AWS/RDS"
  metric_name         = "FreeStorageSpace"
  dimensions          = { DBInstanceIdentifier = aws_db_instance.this.identifier }
  statistic           = "Minimum"
  comparison_operator = "LessThanThreshold"
  threshold           = 2000000000
  period              = 300
  evaluation_periods  = 2
  alarm_actions       = [var.alarm_topic_arn]
}

data "aws_partition" "this" {}
