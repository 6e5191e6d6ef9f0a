"""From answers to what is sent: whole or in pieces, as chat or as text."""
