"""Bytes in and out: stores, manifests, image readers, tables and vectors. No torch, no Ray."""
