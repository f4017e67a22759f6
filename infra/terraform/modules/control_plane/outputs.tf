output "api_url" {
  value = local.api_url
}

output "instance_id" {
  value = aws_instance.server.id
}

output "secret_arn" {
  value = aws_secretsmanager_secret.prefect.arn
}

output "database_secret_arn" {
  value = aws_db_instance.this.master_user_secret[0].secret_arn
}
