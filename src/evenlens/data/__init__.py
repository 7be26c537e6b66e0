"""What a data set is: images, labels, groups, splits, batches."""
