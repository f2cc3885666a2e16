"""Credentials that tagpin has of its own: docker configs, credential programs, clouds."""
