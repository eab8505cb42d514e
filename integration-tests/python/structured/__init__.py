"""Structured output: the schemas, the regular expressions, and the judge."""
