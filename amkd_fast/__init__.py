"""Fused operations for Adversarial Metric Knowledge Distillation, usable in any PyTorch trainer."""
