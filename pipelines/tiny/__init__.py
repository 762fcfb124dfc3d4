"""The parts of ``pipelines.train_tiny``: pictures, texts, loss, schedule, figures, model card."""
