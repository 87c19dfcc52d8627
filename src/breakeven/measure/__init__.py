"""What happened: player, block runner, event log, noise, energy, points."""
