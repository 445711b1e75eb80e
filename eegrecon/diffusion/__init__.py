"""Objectives and samplers of the embedding prior: functions over diffusers schedulers, and the network's scaling."""
