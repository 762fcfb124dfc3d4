"""Image encoders, text towers and the shipped vocabulary. Nothing downloads unasked."""
