"""Evaluation: how a trained model is judged. The suites are plug-ins, see `evaluation/suites`."""
