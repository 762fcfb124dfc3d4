"""rrcluster: sort an image corpus into a tree of named clusters, and keep it sorted as it grows."""

__version__ = "0.1.0"
