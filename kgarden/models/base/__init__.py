"""Base classes of the detectors: Detector, OneStage, TwoStage, StaticShapeModel."""
