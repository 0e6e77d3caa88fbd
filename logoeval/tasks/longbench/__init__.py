"""LongBench v1 and LongBench-E (Bai et al. 2024, arXiv 2308.14508), scored as its authors' scripts do."""
