"""The replay buffer: steps kept for learning again and again, how they are drawn, and how they are saved."""
