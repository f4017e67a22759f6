output "vpc_id" {
  value = local.own ? aws_vpc.this[0].id : var.vpc_id
}

output "subnet_ids" {
  value      = local.own ? [for zone in sort(keys(local.zones)) : aws_subnet.public[zone].id] : var.subnet_ids
  depends_on = [aws_route.out, aws_route_table_association.public] # a machine that boots before its route cannot fetch its code
}

output "worker_security_group_id" {
  value      = aws_security_group.workers.id
  depends_on = [aws_vpc_security_group_egress_rule.workers]
}

output "rules_between_workers" {
  value = length(aws_vpc_security_group_ingress_rule.between_workers) + length(aws_vpc_security_group_egress_rule.between_workers)
}
