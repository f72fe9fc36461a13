"""Images without annotation become a data set: detector, segmenter, contours, describer."""
