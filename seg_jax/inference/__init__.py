"""Trained models at work: prediction and evaluation."""
