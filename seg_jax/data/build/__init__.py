"""Building a data set: annotations in, record files out."""
