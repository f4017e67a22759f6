# Public subnets without inbound rules, no NAT gateway: a NAT costs by the hour while no machine runs. S3 goes through the gateway endpoint.

locals {
  own = var.vpc_id == null
}

data "aws_availability_zones" "this" {
  # checkov:skip=CKV_AWS_394: a zone that AWS adds is wanted, for its capacity; it adds a subnet and moves none (see local.zones)
  count = local.own ? 1 : 0
  state = "available"

  filter { # no local or wavelength zones
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

locals {
  # All zones of the region: capacity for GPUs differs from zone to zone. Each subnet's block follows from its zone's letter, so that a new
  # zone moves no other.
  zones = local.own ? { for zone in data.aws_availability_zones.this[0].names : zone => index(split("", "abcdefghijklmnop"), substr(zone, -1, 1)) } : {}
}

resource "aws_vpc" "this" {
  # checkov:skip=CKV2_AWS_11: flow logs cost by the GB and nothing listens here: no security group of a worker has an inbound rule
  count = local.own ? 1 : 0

  cidr_block           = var.cidr
  enable_dns_support   = true
  enable_dns_hostnames = true
  tags                 = { Name = var.name }
}

resource "aws_default_security_group" "closed" {
  count  = local.own ? 1 : 0
  vpc_id = aws_vpc.this[0].id
  tags   = { Name = "${var.name}-unused" }
}

resource "aws_internet_gateway" "this" {
  count  = local.own ? 1 : 0
  vpc_id = aws_vpc.this[0].id
  tags   = { Name = var.name }
}

resource "aws_subnet" "public" {
  for_each = local.zones

  vpc_id            = aws_vpc.this[0].id
  availability_zone = each.key
  cidr_block        = cidrsubnet(var.cidr, 4, each.value)
  tags              = { Name = "${var.name}-${each.key}" }
}

resource "aws_route_table" "public" {
  count  = local.own ? 1 : 0
  vpc_id = aws_vpc.this[0].id
  tags   = { Name = var.name }
}

resource "aws_route" "out" {
  count = local.own ? 1 : 0

  route_table_id         = aws_route_table.public[0].id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this[0].id
}

resource "aws_route_table_association" "public" {
  for_each = aws_subnet.public

  subnet_id      = each.value.id
  route_table_id = aws_route_table.public[0].id
}

resource "aws_vpc_endpoint" "s3" {
  count = local.own ? 1 : 0

  vpc_id            = aws_vpc.this[0].id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.public[0].id]
  tags              = { Name = "${var.name}-s3" }
}

resource "aws_security_group" "workers" {
  # checkov:skip=CKV2_AWS_5: the launch templates of gpu_workers attach it
  name        = "${var.name}-workers"
  description = "GPU workers: out by 443 and 80, nothing in but from each other with span_machines"
  vpc_id      = local.own ? aws_vpc.this[0].id : var.vpc_id
  tags        = { Name = "${var.name}-workers" }
}

resource "aws_vpc_security_group_egress_rule" "workers" {
  for_each = { https = 443, http = 80 } # 80: Ubuntu's package mirrors, whose packages are signed

  security_group_id = aws_security_group.workers.id
  description       = "${each.key} to anywhere"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = each.value
  to_port           = each.value
}

# Ray and the ranks of one run talk by ports of their own choice, NCCL by its own protocol where the machines have it.
resource "aws_vpc_security_group_ingress_rule" "between_workers" {
  count = var.span_machines ? 1 : 0

  security_group_id            = aws_security_group.workers.id
  description                  = "workers of one run"
  referenced_security_group_id = aws_security_group.workers.id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_egress_rule" "between_workers" {
  count = var.span_machines ? 1 : 0

  security_group_id            = aws_security_group.workers.id
  description                  = "workers of one run"
  referenced_security_group_id = aws_security_group.workers.id
  ip_protocol                  = "-1"
}
