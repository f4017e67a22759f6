# Plans against a provider that knows AWS's schemas and asks nobody. What a plan can show is held here; what only an apply can show is
# tests/apply.py (`make test-infra`).

mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["us-east-1a", "us-east-1b", "us-east-1c"] }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_ec2_instance_type" {
    defaults = { gpus = [{ count = 1, manufacturer = "NVIDIA", memory_size = 24576, name = "A10G" }] }
  }
  mock_data "aws_subnet" {
    defaults = { cidr_block = "10.42.0.0/20" }
  }
  mock_data "aws_ssm_parameter" {
    defaults = { value = "ami-0123456789abcdef0" }
  }
}

variables {
  environment        = "dev"
  protect            = false
  region             = "us-east-1"
  bucket             = "team-bessemer-dev"
  code_archive       = "versions.tf" # any file: its digest is what is used
  gpus               = 1
  instance_types     = ["g5.xlarge", "g5.2xlarge"]
  max_machines       = { spot = 2, on_demand = 1 }
  monthly_budget_usd = 300
  alarm_emails       = ["team@example.com"]
}

run "groups_are_empty_closed_and_aws_ends_no_machine" {
  command = plan

  assert {
    condition     = alltrue([for group in module.gpu_workers.groups : group.min_size == 0 && group.desired_capacity == 0 && group.protect_from_scale_in])
    error_message = "a group that starts full, or that AWS may shrink"
  }
  assert {
    condition     = module.gpu_workers.groups["spot"].mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 0
    error_message = "the spot group buys on-demand machines"
  }
  assert {
    condition     = module.gpu_workers.groups["spot"].mixed_instances_policy[0].instances_distribution[0].spot_allocation_strategy == "capacity-optimized"
    error_message = "spot machines are not taken where most are free"
  }
  assert {
    condition     = module.gpu_workers.groups["on-demand"].mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 100
    error_message = "the fallback is not on demand"
  }
  assert {
    condition     = module.gpu_workers.groups["spot"].max_size == 2 && module.gpu_workers.groups["on-demand"].max_size == 1
    error_message = "max_machines is not what the groups have"
  }

  assert {
    condition     = module.network.rules_between_workers == 0
    error_message = "a worker lets another one in"
  }
  assert {
    condition     = output.usd_per_hour == null
    error_message = "a cost that nobody gave the prices of"
  }
  assert {
    condition     = alltrue([for template in module.gpu_workers.templates : template.metadata_options[0].http_tokens == "required"])
    error_message = "IMDSv1 is open"
  }
  assert {
    condition     = alltrue([for template in module.gpu_workers.templates : template.block_device_mappings[0].ebs[0].encrypted == "true"])
    error_message = "a disk is not encrypted"
  }
  assert {
    condition     = alltrue([for template in module.gpu_workers.templates : template.key_name == null])
    error_message = "an SSH key"
  }
}

run "workers_reach_each_other_only_when_a_run_may_span_them" {
  command = plan
  variables {
    span_machines = true
  }

  assert {
    condition     = module.network.rules_between_workers == 2
    error_message = "the ranks of one run cannot meet"
  }
}

run "an_instance_type_of_another_size_is_named" {
  command = plan
  variables {
    gpus = 8
  }
  expect_failures = [data.aws_ec2_instance_type.each]
}

run "your_own_network_server_roles_and_image" {
  command = plan
  variables {
    vpc_id                  = "vpc-0123456789abcdef0"
    subnet_ids              = ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"]
    public_ip               = false
    prefect_api_url         = "https://prefect.example.com/api"
    prefect_secret_arn      = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prefect"
    scaler_role             = "scaler"
    worker_instance_profile = "my-workers"
    ami_id                  = "ami-0aaaaaaaaaaaaaaaa"
    create_bucket           = false
  }

  assert {
    condition     = output.prefect_api_url == "https://prefect.example.com/api" && output.control_plane_instance_id == null
    error_message = "a server was made beside the one given"
  }
  assert {
    condition     = alltrue([for template in module.gpu_workers.templates : template.image_id == "ami-0aaaaaaaaaaaaaaaa" && template.iam_instance_profile[0].name == "my-workers"])
    error_message = "image or profile given is not used"
  }
  assert {
    condition     = alltrue([for group in module.gpu_workers.groups : contains(group.vpc_zone_identifier, "subnet-0123456789abcdef1")])
    error_message = "the subnets given are not used"
  }
}

run "cost_by_the_hour" {
  command = plan
  variables {
    prices = {
      date                   = "2026-01-31"
      source                 = "round figures of this test, of no region"
      on_demand_hour         = { "g5.xlarge" = 2, "g5.2xlarge" = 3 }
      spot_hour              = { "g5.xlarge" = 1, "g5.2xlarge" = 1.5 }
      control_plane_hour     = 0.02
      database_hour          = 0.03
      public_ip_hour         = 0.01
      disk_gb_month          = 0.073
      database_disk_gb_month = 0.073
      secret_month           = 0.365
      key_month              = 0.73
      alarm_month            = 0.0365
      bucket_gb_month        = 0.02
    }
  }

  assert { # 0.02 server + 0.03 + 0.002 database + 0.002 disk + 0.01 address + 0.001 secrets + 0.001 key + 0.0001 alarms
    condition     = abs(output.usd_per_hour.idle_total - 0.0661) < 0.000001
    error_message = "idle is ${output.usd_per_hour.idle_total}"
  }
  assert { # two spot machines at 1.5 and one at 3, each with 0.01 for its address and 120 GB at 0.0001
    condition     = abs(output.usd_per_hour.most_at_once - (0.0661 + 3 + 3 + 3 * 0.022)) < 0.000001
    error_message = "at most ${output.usd_per_hour.most_at_once}"
  }
}

# Several wrong values a run: each of them must be refused, and a plan costs three seconds.

run "wrong_places_types_and_addresses_are_refused" {
  command = plan
  variables {
    region                      = "eu-west-9"
    bucket                      = "your-bucket"
    instance_types              = ["m5.xlarge"]
    control_plane_allowed_cidrs = ["0.0.0.0/0"]
    alarm_emails                = []
    prefect_api_url             = "http://prefect.example.com/api"
    database_backup_days        = 0
    vpc_id                      = "vpc-0123456789abcdef0"
  }
  expect_failures = [
    var.region, var.bucket, var.instance_types, var.control_plane_allowed_cidrs, var.alarm_emails, var.prefect_api_url,
    var.database_backup_days, var.subnet_ids,
  ]
}

run "half_a_server_no_machine_and_a_price_without_its_date_are_refused" {
  command = plan
  variables {
    max_machines    = { spot = 0, on_demand = 0 }
    prefect_api_url = "https://prefect.example.com/api"
    prices = {
      date               = "lately", source = "hearsay", on_demand_hour = { "g5.xlarge" = 2, "g5.2xlarge" = 3 }, spot_hour = { "g5.xlarge" = 1, "g5.2xlarge" = 1 }
      control_plane_hour = 1, database_hour = 1, public_ip_hour = 1, disk_gb_month = 1, database_disk_gb_month = 1, secret_month = 1, key_month = 1
      alarm_month        = 1, bucket_gb_month = 1
    }
  }
  expect_failures = [var.max_machines, var.prices, var.prefect_secret_arn, var.scaler_role]
}

run "families_are_not_mixed" {
  command = plan
  variables {
    instance_types = ["p4d.24xlarge", "p5.48xlarge"]
  }
  expect_failures = [var.instance_types]
}
