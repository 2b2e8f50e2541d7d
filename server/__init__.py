"""Layer 3: translation only. Bytes become values, errors become status codes; every decision is the engine's."""
