"""What tests share: tiny models and dictionaries, cases, stand-ins for servers, and a browser."""
