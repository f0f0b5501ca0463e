"""Methods that turn what a pass has seen into segments: one class each, on `base.Segmenter`."""
