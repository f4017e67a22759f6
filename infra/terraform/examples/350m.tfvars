# The preset 350m: one machine with 8 GPUs. Copy it, put your own names in, and set the budget to what you will pay.
region             = "us-east-1"
bucket             = "your-bucket"
alarm_emails       = ["you@example.com"]
monthly_budget_usd = 2000

gpus           = 8
instance_types = ["p4d.24xlarge"]
max_machines   = { spot = 1, on_demand = 1 }

# Prices of your region, looked up by you (operations.md says where). Without them no cost is shown.
# prices = { date = "YYYY-MM-DD", source = "https://...", on_demand_hour = { ... }, spot_hour = { ... }, ... }
