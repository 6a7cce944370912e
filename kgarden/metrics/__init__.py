"""How good detections are and what is wrong with them: dictionaries in, numbers and pictures out."""
