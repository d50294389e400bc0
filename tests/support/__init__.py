"""Helpers that several test files share; no tests are in here."""
