"""What watches training: capture and probe, the measures, the schedule, the callback."""
