"""Drawing of objects and detections; contact sheets of data sets."""
