"""Training: encoders (`nestvec.train.encoder`), by `nestvec train`. Only the steps that learn need torch."""
