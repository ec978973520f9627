"""A name becomes a classifier: module, preprocessing, class names, device, dtype."""
