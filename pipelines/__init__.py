"""Jobs: each joins choices and calls stages, top to bottom. ``rrcluster <job>`` runs them."""
