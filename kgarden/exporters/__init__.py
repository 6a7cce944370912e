"""Writers of SavedModel, ONNX and LiteRT files and of other projects' weights, and what they check."""
