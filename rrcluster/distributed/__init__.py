"""The only place that imports Ray. It carries; what is computed stands in core and stages."""
