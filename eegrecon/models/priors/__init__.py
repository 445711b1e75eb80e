"""Networks of the prior, denoisers and regressors; `eegrecon.config.PRIORS` names them."""
