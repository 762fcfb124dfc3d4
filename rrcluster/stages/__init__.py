"""One function per arrow of the data flow: artifacts in, an artifact out. No Ray, no Hydra."""
