"""Filters: a tree of conditions on payloads, columns made of payloads, and masks made of both."""
