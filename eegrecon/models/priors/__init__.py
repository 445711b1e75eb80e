"""Networks of the diffusion prior; `eegrecon.config.PRIORS` names them."""
