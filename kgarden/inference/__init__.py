"""Inference: predictor, test-time augmentation, postprocessing, masks."""
