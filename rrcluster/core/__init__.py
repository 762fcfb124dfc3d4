"""The mathematics: pure functions of tensors and integers. No files, no network, no clock, no Ray."""
