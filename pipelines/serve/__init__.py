"""Models over HTTP: requests of many clients, batched through the operators that runs use."""
