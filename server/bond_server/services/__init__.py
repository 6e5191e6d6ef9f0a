"""What the gateway does, free of the web framework: each service has one noun."""
