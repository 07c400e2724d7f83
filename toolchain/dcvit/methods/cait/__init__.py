"""CAIT (arXiv 2309.15755): merging and narrowing, with a training on many images."""
