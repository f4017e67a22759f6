terraform {
  required_version = ">= 1.11" # S3 locking without a table came with 1.10, and was experimental there

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }

  # The bucket, key and region come from environments/<env>/backend.hcl; the bucket from state/.
  backend "s3" {
    use_lockfile = true
    encrypt      = true
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = merge(var.tags, { Project = var.project, Environment = var.environment })
  }
}
