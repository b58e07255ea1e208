"""Probes and monitors, measured on data that the repository makes itself."""
