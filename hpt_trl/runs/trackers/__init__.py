"""What a run tells wandb, trackio and TensorBoard beside the metrics that transformers' own callbacks log there."""
