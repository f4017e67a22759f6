# The data bucket, and the code that machines run in it. Encrypted by AWS's own S3 key: one of ours would die with the stack while the data
# stays, and then nobody could read it.

data "aws_partition" "this" {}

locals {
  release_sha256 = filesha256(var.archive)
  release_key    = "releases/${local.release_sha256}.tar.gz"
}

resource "aws_s3_bucket" "data" {
  # checkov:skip=CKV_AWS_18: access logs would cost more than they tell of one team's bucket; CloudTrail's data events are the account's to switch on
  # checkov:skip=CKV_AWS_144: artifacts can be made again from their sources, so no second region is paid for
  # checkov:skip=CKV2_AWS_62: nothing waits for events of this bucket
  count = var.create_bucket ? 1 : 0

  bucket        = var.bucket
  force_destroy = var.delete_data
}

resource "aws_s3_bucket_public_access_block" "data" {
  count = var.create_bucket ? 1 : 0

  bucket                  = aws_s3_bucket.data[0].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "data" {
  count  = var.create_bucket ? 1 : 0
  bucket = aws_s3_bucket.data[0].id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_versioning" "data" {
  count  = var.create_bucket ? 1 : 0
  bucket = aws_s3_bucket.data[0].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "data" {
  count  = var.create_bucket ? 1 : 0
  bucket = aws_s3_bucket.data[0].id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm = "aws:kms"
    }
  }
}

# Nothing current expires: a manifest may name any file under artifacts/, and a rule by age would break what it names. Attempts
# delete their own files; what goes here is what that leaves under versioning.
resource "aws_s3_bucket_lifecycle_configuration" "data" {
  count  = var.create_bucket ? 1 : 0
  bucket = aws_s3_bucket.data[0].id

  rule {
    id     = "abort-multipart"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 3
    }
  }

  rule {
    id     = "expire-what-attempts-deleted"
    status = "Enabled"

    filter {
      prefix = "${var.prefix}/artifacts/"
    }

    noncurrent_version_expiration {
      noncurrent_days = 7
    }

    expiration {
      expired_object_delete_marker = true
    }
  }

  rule {
    id     = "expire-locks"
    status = "Enabled"

    filter {
      prefix = "${var.prefix}/locks/"
    }

    noncurrent_version_expiration {
      noncurrent_days = 1
    }

    expiration {
      days = 7 # a lock is held for a minute at a time
    }
  }

  rule {
    id     = "expire-old-releases"
    status = "Enabled"

    filter {
      prefix = "releases/"
    }

    noncurrent_version_expiration {
      noncurrent_days = 30
    }
  }

  depends_on = [aws_s3_bucket_versioning.data]
}

resource "aws_s3_bucket_policy" "data" {
  count  = var.create_bucket ? 1 : 0
  bucket = aws_s3_bucket.data[0].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "TlsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [aws_s3_bucket.data[0].arn, "${aws_s3_bucket.data[0].arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })

  depends_on = [aws_s3_bucket_public_access_block.data]
}

resource "aws_s3_object" "release" {
  # checkov:skip=CKV_AWS_186: the bucket's default encryption applies; see the head of this file for why it is not a key of ours
  bucket      = var.create_bucket ? aws_s3_bucket.data[0].id : var.bucket
  key         = local.release_key
  source      = var.archive
  source_hash = local.release_sha256

  depends_on = [aws_s3_bucket_server_side_encryption_configuration.data, aws_s3_bucket_versioning.data]
}
