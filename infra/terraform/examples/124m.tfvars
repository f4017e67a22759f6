# The preset 124m: one GPU with 24 GB. Copy it, put your own names in, and set the budget to what you will pay.
region             = "us-east-1"
bucket             = "your-bucket"
alarm_emails       = ["you@example.com"]
monthly_budget_usd = 300

gpus           = 1
instance_types = ["g5.xlarge", "g5.2xlarge", "g5.4xlarge"]
max_machines   = { spot = 1, on_demand = 1 }

# Prices of your region, looked up by you (operations.md says where). Without them no cost is shown.
# prices = { date = "YYYY-MM-DD", source = "https://...", on_demand_hour = { ... }, spot_hour = { ... }, ... }
