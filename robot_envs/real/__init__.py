"""The real robot as a Gymnasium environment: drivers, safety, server, people, recording."""
