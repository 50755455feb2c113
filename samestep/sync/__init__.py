"""HOW REPLICAS AGREE: the fixed tree, slices and buckets, and the strategies built on them."""
