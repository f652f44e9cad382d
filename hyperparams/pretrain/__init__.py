"""Hydra configuration of ``zprl pretrain``."""
