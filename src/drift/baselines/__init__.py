"""What TRL trains, on drift's conversations: DPO and KTO from rollouts that are there, GRPO on live environments."""
