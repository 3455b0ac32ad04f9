"""What a study would take: steps measured, studies simulated."""
