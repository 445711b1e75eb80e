"""What a run's pathways say of a trial beside the prior: latents to start from and words."""
