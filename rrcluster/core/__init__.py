"""The mathematics: pure functions of tensors and integers. No files, no network, no Ray."""
