output "bucket" {
  value = var.bucket
}

output "bucket_arn" {
  value = "arn:${data.aws_partition.this.partition}:s3:::${var.bucket}"
}

output "release_uri" {
  value = "s3://${aws_s3_object.release.bucket}/${local.release_key}"
}

output "release_sha256" {
  value = local.release_sha256
}
