# The preset 1b: 1 to 4 machines with 8 GPUs, for runs of their own or for one (run.nodes). Copy it, put your own names in, and set the
# budget to what you will pay.
region             = "us-east-1"
bucket             = "your-bucket"
alarm_emails       = ["you@example.com"]
monthly_budget_usd = 10000

gpus           = 8
instance_types = ["p5.48xlarge"]
max_machines   = { spot = 4, on_demand = 1 }
span_machines  = true

# Prices of your region, looked up by you (operations.md says where). Without them no cost is shown.
# prices = { date = "YYYY-MM-DD", source = "https://...", on_demand_hour = { ... }, spot_hour = { ... }, ... }
