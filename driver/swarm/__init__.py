"""What a Docker Swarm gives us: who its managers are, who leads it, and certificates to trust."""
