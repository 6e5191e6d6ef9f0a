"""Migrations, in the order of their numbers; once released, one is never edited."""
